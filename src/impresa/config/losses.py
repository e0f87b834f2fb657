"""The contrastive objective of an experiment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from impresa.config.types import (
    MAX_LOGIT_SCALE,
    Count,
    Flag,
    Float,
    LogitScale,
    NonNegative,
    Section,
    Temperature,
)

LossType = Literal["clip", "siglip"]
PairName = Literal["image-text", "image-audio", "text-audio", "image+audio-text"]
FUSED_PAIR: PairName = "image+audio-text"
"""The pair of the embedding that image and sound are fused into, and the caption."""


@dataclass(frozen=True, kw_only=True)
class LossConfig(Section):
    """The contrastive objective: contrastive_weight * L(e) + mrl_weight * mean over d of L(e[:d])."""

    type: LossType = "clip"
    """`clip`: symmetric InfoNCE; `siglip`: a sigmoid for each pair."""
    contrastive_weight: NonNegative = 1.0
    """Weight of the loss at the full width."""
    mrl_weight: NonNegative = 1.0
    """Weight of the mean of the losses at the Matryoshka dimensions."""
    temperature: Temperature | None = None
    """Initial (or fixed) value of the temperature that divides similarities. null: 0.07 (`clip`), 0.1 (`siglip`), or
    more if `max_logit_scale` requires it. Learned or fixed, it is at least 0.01: similarities are multiplied by at most
    100."""
    learn_temperature: Flag = True
    """Learn the temperature; false keeps it fixed."""
    max_logit_scale: LogitScale = MAX_LOGIT_SCALE
    """Largest factor for similarities while the temperature is learned. On little data the temperature falls until the
    model is overconfident on its training data; a limit below 100 prevents that."""
    siglip_bias: Literal["auto"] | Float = "auto"
    """siglip: initial bias; `auto` starts the loss at its floor for the given batch size."""
    gather_distributed: Flag = False
    """Gather embeddings over all processes, so that n processes train as one with n times the batch. false: each
    contrasts its own rows only, with fewer negatives and a lower loss (at chance the ln of its rows). Validation never
    gathers."""
    sample_single_mrl_dim: Flag = False
    """true: one randomly drawn Matryoshka dimension per optimizer step; false: all of them in every step."""
    pairs: tuple[PairName, ...] | None = None
    """Pairs to align. null: every pair of modalities in the batch. `image+audio-text` aligns captions with the
    embedding that `fusion` makes of image and sound."""
    duplicates: Literal["ignore", "positive"] = "positive"
    """Samples of a batch with equal images (pixel by pixel, before augmentation), equal captions (before words are
    dropped) or equal sounds: treated as positives of each other (`positive`) or as negatives (`ignore`). For a pair of
    modalities only these two count. Equal samples in different batches, or on processes that do not gather, never
    meet."""
    row_chunk: Count | None = None
    """Rows, and columns, of the batch's similarity matrix that are held at a time. null: those of the wide prefixes are
    kept whole; a number saves memory at large batches and costs a third more work in the loss."""
