"""The outputs of backbones and encoders."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from impresa.layers.end_to_end import EndToEnd


@dataclass(frozen=True)
class Layout:
    """The places of a backbone's tokens in the sequence that its blocks attend over; registers have none."""

    patches: slice
    """The patches, in reading order."""
    cls: int | None = None
    memory: slice | None = None


@dataclass
class Features:
    """The output of a backbone for B inputs, after its last norm."""

    summary: Tensor | None = None
    """(B, D), the token that summarises the input: CLS of an image, the end token of a text."""
    tokens: Tensor | None = None
    """(B, N, D), the patches or words; None with `summary_only`."""
    mask: Tensor | None = None
    """(B, N) bool, true where a token is real; None for all true."""
    memory: Tensor | None = None
    """(B, M, D), the memory tokens of a backbone that has them; None with `summary_only`."""
    layout: EndToEnd | None = None
    """The places of tokens that lie end to end, (S, D): `tokens` is that then, and becomes (B, N, D) by `padded`."""


@dataclass
class EncoderOutput:
    """The output of an encoder for B inputs; tokens, mask and memory as in `Features`, where tokens were asked for."""

    pooled: Tensor
    """(B, E), not normalised: the loss normalises each Matryoshka prefix by itself."""
    tokens: Tensor | None = None
    mask: Tensor | None = None
    memory: Tensor | None = None
