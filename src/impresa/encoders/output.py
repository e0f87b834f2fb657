"""The outputs of backbones and encoders."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass
class Features:
    """The output of a backbone for B inputs, after its last norm."""

    summary: Tensor | None = None
    """(B, D), the token that stands for the whole input: CLS of an image, the end token of a text."""
    tokens: Tensor | None = None
    """(B, N, D), the patches or words; None when only the summary was asked for."""
    mask: Tensor | None = None
    """(B, N) bool, true where a token is real; None stands for all true."""
    memory: Tensor | None = None
    """(B, M, D), the memory tokens of a backbone that has them; None when only the summary was asked for."""


@dataclass
class EncoderOutput:
    """Tokens, their mask, and the pooled embedding of B inputs."""

    pooled: Tensor
    """(B, E), not normalised: the loss normalises each Matryoshka prefix by itself."""
    tokens: Tensor | None = None
    """(B, N, D), or None when the caller did not ask for tokens."""
    mask: Tensor | None = None
    """(B, N) bool, true where a token is real; None stands for all true."""
    memory: Tensor | None = None
    """(B, M, D) memory tokens after the last block, when the tower has memory and tokens were asked for."""
