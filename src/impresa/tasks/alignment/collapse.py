"""A watch for training runs that do not learn: collapsed embeddings and the plateau at the loss of guessing."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from itertools import product

import torch
from torch import Tensor, nn

from impresa.config.experiment import ExperimentConfig
from impresa.config.losses import PairName
from impresa.config.optimization import warmup_key
from impresa.losses.kinds import KINDS
from impresa.losses.pairs import FUSED, PAIRS
from impresa.tasks.alignment.batch import Batch
from impresa.tasks.alignment.model import present_in

logger = logging.getLogger(__name__)

STEPS_AFTER_WARMUP = 50
STEPS_OF_PAIRS = 10
LOSS_MARGIN = 0.02
LARGEST_MEAN_COSINE = 0.999


class CollapseWatch:
    """Warns once when a contrastive training run seems stuck, and names the likely cause.

    From 50 steps after the warm-up on, it looks at the mean loss over as many steps: within 0.02 of the loss at chance
    (`LossKind.loss_at_chance`), or embeddings of different samples whose mean cosine is above 0.999. And once the first
    10 steps are over it names the pairs of modalities of which no batch had two samples: they have learned nothing.

    Args:
        config: the experiment.
        warmup_steps: steps in which the learning rate still rises.
        world_size: number of processes.
    """

    def __init__(self, config: ExperimentConfig, warmup_steps: int, world_size: int = 1) -> None:
        self.config = config
        self.has_warned = False
        self._warmup_steps = warmup_steps
        self._contrasted = world_size if config.losses.gather_distributed else 1
        self._excess: list[Tensor] = []
        pairs = config.losses.pairs or [name for name, both in PAIRS.items() if FUSED not in both]
        self._pairs: dict[PairName, list[Tensor]] = {name: [] for name in pairs if config.audio_encoder is not None}

    def after_step(self, step: int, batches: Sequence[Batch], logs: Mapping[str, Tensor]) -> None:
        """Look at `contrastive` and `mean_cosine` of optimizer step number `step`."""
        if step <= STEPS_OF_PAIRS:
            self._watch_pairs(step, batches)
        if self.has_warned or step <= self._warmup_steps:
            return
        own = [batch for batch in batches if len(batch)]
        if not own:
            return
        guessing = sum(len(batch) * self._guessing(batch) for batch in own) / sum(map(len, own))
        self._excess.append(logs["contrastive"] - guessing)
        if len(self._excess) < STEPS_AFTER_WARMUP:
            return
        cosine, excess = logs["mean_cosine"].item(), torch.stack(self._excess).mean().item()
        self._excess.clear()
        if cosine > LARGEST_MEAN_COSINE:
            self._warn(step, f"all inputs get nearly the same embedding (mean cosine {cosine:.4f})")
        elif abs(excess) < LOSS_MARGIN:
            self._warn(step, "the loss is that of guessing")

    def _guessing(self, batch: Batch) -> float:
        """The loss at chance of a batch; hard negatives stand in one of its two directions."""
        at_chance = KINDS[self.config.losses.type].loss_at_chance
        num_wrong = 0 if batch.negative_ids is None else len(batch.negative_ids)
        sizes = (len(batch), len(batch) + num_wrong)
        return sum(at_chance(size * self._contrasted) for size in sizes) / 2

    def _watch_pairs(self, step: int, batches: Sequence[Batch]) -> None:
        """Count the samples of each pair of modalities; only with sounds may a sample lack one."""
        for batch, name in product(batches, self._pairs):
            present = present_in(batch)
            masks = [present[part] for part in PAIRS[name] if part in present]
            number = torch.stack(masks).all(dim=0).sum() if masks else torch.tensor(len(batch))
            self._pairs[name].append(number)
        for name, numbers in self._pairs.items() if step == STEPS_OF_PAIRS else ():
            if max(map(int, numbers)) * self._contrasted < 2:
                fix = "raise dataset.batch_size, or leave the pair out"
                logger.warning(f"losses.pairs: no batch of {step} steps had two samples with {name}; {fix}")

    def _warn(self, step: int, what: str) -> None:
        self.has_warned = True
        optimization = self.config.optimization
        cause = f"most likely too large steps: lower optimization.lr ({optimization.lr:g})"
        if self._warmup_steps < STEPS_AFTER_WARMUP:
            cause += f", lengthen {warmup_key(optimization)}"
        if optimization.clip_grad == 0:
            cause += ", clip gradients (optimization.clip_grad=1)"
        logger.warning(f"step {step}: {what}; {cause}, or images and captions do not belong together")


def unit_sums(embeddings: Tensor) -> dict[str, Tensor]:
    """Of rows (B, E), all that `mean_cosine` asks for; those of several batches may be added up."""
    unit = nn.functional.normalize(embeddings.float(), dim=-1)
    return {"unit_sum": unit.sum(dim=0), "num_rows": unit.new_tensor(len(unit))}


def mean_cosine(sums: Mapping[str, Tensor]) -> Tensor:
    """Mean cosine between different rows, a scalar; 1 means that the model maps everything to one point."""
    num_rows = sums["num_rows"]
    return (sums["unit_sum"].square().sum() - num_rows) / (num_rows * (num_rows - 1)).clamp(min=1)
