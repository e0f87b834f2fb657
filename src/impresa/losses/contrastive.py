"""The contrastive objective on the embeddings of a batch.

Letters of shapes: B batch, E embedding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from impresa.config.experiment import LossConfig, Modality, PairName
from impresa.errors import DataError
from impresa.losses.clip import clip_loss

MAX_LOGIT_SCALE = 100.0

PAIRS: dict[PairName, tuple[Modality, Modality]] = {
    "image-text": ("image", "text"),
    "image-audio": ("image", "audio"),
    "text-audio": ("text", "audio"),
}


@dataclass
class LossOutput:
    """A loss to minimise and what a log shows of it."""

    loss: torch.Tensor
    """Scalar with its graph."""
    logs: dict[str, torch.Tensor]
    """Detached scalars."""


class ContrastiveLoss(nn.Module):
    """The loss between the modalities of a batch; holds the logit scale.

    `logit_scale` is t, of which exp(t) multiplies the cosines: a parameter when `learn_temperature`, else a buffer.

    Args:
        config: the loss's settings.
    """

    logit_scale: torch.Tensor

    def __init__(self, config: LossConfig) -> None:
        super().__init__()
        self.config = config
        start = torch.tensor(math.log(1 / config.temperature))
        if config.learn_temperature:
            self.logit_scale = nn.Parameter(start)
        else:
            self.register_buffer("logit_scale", start)

    def forward(self, embeddings: Mapping[Modality, torch.Tensor]) -> LossOutput:
        """Align the modalities.

        Args:
            embeddings: (B, E) per modality, not normalised; equal rows belong to the same sample.

        Raises:
            DataError: no pair of modalities that is to be aligned is in the batch.
        """
        scale = self.logit_scale.exp()
        losses = [clip_loss(embeddings[a], embeddings[b], scale) for a, b in self._pairs(embeddings)]
        contrastive = torch.stack(losses).mean()
        logs = {"contrastive": contrastive.detach(), "logit_scale": scale.detach()}
        return LossOutput(self.config.contrastive_weight * contrastive, logs)

    @torch.no_grad()
    def clamp_(self) -> None:
        """Keep a learned logit scale at most at 100; to be called after each optimizer step."""
        if self.config.learn_temperature:
            self.logit_scale.clamp_(max=math.log(MAX_LOGIT_SCALE))

    def _pairs(self, embeddings: Mapping[Modality, torch.Tensor]) -> list[tuple[Modality, Modality]]:
        wanted = self.config.pairs or tuple(PAIRS)
        pairs = [PAIRS[name] for name in wanted if all(modality in embeddings for modality in PAIRS[name])]
        if not pairs:
            raise DataError(f"batch: has only {', '.join(embeddings)}; one of the pairs {', '.join(wanted)} is needed")
        return pairs
