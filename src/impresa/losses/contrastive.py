"""The contrastive objective on the embeddings of a batch, with all its switches.

Letters of shapes: B batch, E embedding, K prefixes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from impresa.config.losses import LossConfig
from impresa.config.types import MAX_LOGIT_SCALE
from impresa.losses.kinds import KINDS
from impresa.losses.pairs import Embedded, Negatives, Pair, pairs_of
from impresa.losses.siglip import LogitBias


@dataclass
class LossOutput:
    """A loss to minimise, a scalar with its graph, and the values to log."""

    loss: Tensor
    logs: dict[str, Tensor]
    """Detached scalars."""


class ContrastiveLoss(nn.Module):
    """contrastive_weight * L(e) + mrl_weight * mean over d of L(e[:d]), averaged over the pairs of modalities.

    L is the loss `config.type`. `logit_scale` is t, of which exp(t) multiplies the cosines: a parameter when
    `learn_temperature`, with exp(t) at most `max_logit_scale`, else a buffer, at most 100. `logit_bias` is the bias b
    of a loss that has one, else None.

    Args:
        config: `losses` of the experiment.
        mrl_dimensions: prefixes to train beside the full width; none for no Matryoshka training.
        seed: with the step it decides which prefix is drawn under `sample_single_mrl_dim`.
    """

    logit_scale: Tensor
    step: Tensor

    def __init__(self, config: LossConfig, *, mrl_dimensions: Sequence[int] = (), seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.mrl_dimensions = tuple(mrl_dimensions)
        self.seed = seed
        self.kind = KINDS[config.type]
        limit = config.max_logit_scale if config.learn_temperature else MAX_LOGIT_SCALE
        self.max_t = math.log(limit) - 1e-6  # so that exp(t) is no more in float32 either
        start = torch.tensor(min(math.log(1 / (config.temperature or self.kind.temperature)), self.max_t))
        if config.learn_temperature:
            self.logit_scale = nn.Parameter(start)
        else:
            self.register_buffer("logit_scale", start)
        self.logit_bias = LogitBias(config.siglip_bias) if self.kind.has_bias else None
        if self._draws:
            self.register_buffer("step", torch.tensor(0))

    def forward(
        self,
        embeddings: Mapping[Embedded, Tensor],
        *,
        present: Mapping[Embedded, Tensor] | None = None,
        keys: Mapping[Embedded, Tensor] | None = None,
        negatives: Negatives | None = None,
    ) -> LossOutput:
        """Align the modalities.

        With `gather_distributed`, every process must pass the same modalities; one whose samples all lack one of them
        passes rows and a mask that is false everywhere. Validation does not gather: processes may have different
        numbers of batches there.

        Args:
            embeddings, present, keys, negatives: see `pairs_of`. Keys are read for `duplicates: positive`; without any,
                all rows are taken to be different. All processes pass negatives, if only (0, E), or none does.

        Raises:
            DataError: the batch has no pair of modalities to align.
        """
        known = keys if self.config.duplicates == "positive" else None
        pairs = pairs_of(embeddings, self.config.pairs, present or {}, known or {}, negatives)
        width, dims = pairs[0].a.shape[1], self._dims_of_step()
        losses = self._prefix_losses(pairs, [width, *(d for d in dims if d != width)])
        loss = self.config.contrastive_weight * losses[width]
        if dims:
            loss = loss + self.config.mrl_weight * torch.stack([losses[d] for d in dims]).mean()
        logs = {"contrastive": losses[width], **{f"mrl_{d}": losses[d] for d in dims}}
        logs["logit_scale"] = self._scale()
        if self.logit_bias is not None:
            logs["logit_bias"] = self.logit_bias.value
        return LossOutput(loss, {name: value.detach().clone() for name, value in logs.items()})

    @torch.no_grad()
    def commit(self, step: int) -> None:
        """Finish an optimizer step: keep a learned t at most at its limit, and draw the next prefix.

        Args:
            step: optimizer steps done since the start of the training run, from 1.
        """
        if self.config.learn_temperature:
            self.logit_scale.clamp_(max=self.max_t)
        if self._draws:
            self.step.fill_(step)

    @property
    def _gathers(self) -> bool:
        return self.config.gather_distributed and self.training

    @property
    def _draws(self) -> bool:
        return self.config.sample_single_mrl_dim and bool(self.mrl_dimensions)

    def _scale(self) -> Tensor:
        """exp(t), also where t comes from a run that was trained without its limit."""
        return self.logit_scale.clamp(max=self.max_t).exp()

    def _dims_of_step(self) -> tuple[int, ...]:
        """All prefixes, or the one that (seed, step) draws: each as often, and on every process the same."""
        if not (self._draws and self.training):
            return self.mrl_dimensions
        digest = hashlib.blake2b(f"{self.seed}/{int(self.step)}".encode(), digest_size=8).digest()
        return (self.mrl_dimensions[int.from_bytes(digest, "little") % len(self.mrl_dimensions)],)

    def _prefix_losses(self, pairs: Sequence[Pair], dims: Sequence[int]) -> dict[int, Tensor]:
        """Each prefix's loss, averaged over the pairs; the full width is there even if it weighs nothing."""
        logits = [self._scale()]
        if self.logit_bias is not None:
            logits.append(self.logit_bias(pairs, logits[0], gather=self._gathers))
        losses = []
        for pair in pairs:
            options: dict[str, Any] = {"row_chunk": self.config.row_chunk, "gather": self._gathers}
            if pair.negatives is not None:
                options["negatives"] = pair.negatives
            losses.append(self.kind.objective(pair.a, pair.b, *logits, dims, labels=pair.labels, **options))
        return dict(zip(dims, torch.stack(losses).mean(dim=0), strict=True))
