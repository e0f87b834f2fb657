"""The contrastive losses by name, with all that training has to know of each."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from impresa.config.losses import LossType
from impresa.losses.matryoshka import matryoshka_clip_loss, matryoshka_siglip_loss


@dataclass(frozen=True, kw_only=True)
class LossKind:
    """A contrastive loss."""

    name: LossType
    objective: Callable[..., Tensor]
    """`(a, b, logit_scale, dims, *, labels, row_chunk, gather)` -> (K,) losses, one for each of the K lengths `dims` to
    which embeddings `a` and `b` (B, E), not normalised, are cut; see `matryoshka_clip_loss` for the arguments. With
    `has_bias` the scalar `logit_bias` follows `logit_scale`. Plain autograd will do; `row_chunk` may then be
    ignored, for it saves memory and changes no number. `negatives` is given too where the data have hard ones."""
    temperature: float
    """Start of the temperature that cosines are divided by."""
    has_bias: bool = False
    """A learned bias is added to the scaled cosines."""
    loss_at_chance: Callable[[int], float] = math.log
    """B -> the loss of a batch of B whose embeddings are all the same."""
    lr_scale: float = 1.0
    """Learning rate of scale and bias, as a multiple of `lr`."""


_KINDS = (
    LossKind(name="clip", objective=matryoshka_clip_loss, temperature=0.07),
    LossKind(
        name="siglip",
        objective=matryoshka_siglip_loss,
        temperature=0.1,
        has_bias=True,
        loss_at_chance=lambda batch_size: 1 + math.log(batch_size),  # a common plateau of it
        # The bias has to go from the floor of a fresh model, about -ln B, to where pairs are separated, several times
        # as far down, in the steps in which the towers learn.
        lr_scale=100.0,
    ),
)
KINDS: dict[LossType, LossKind] = {kind.name: kind for kind in _KINDS}
