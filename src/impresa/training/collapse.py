"""A watch for trainings that do not learn: collapsed embeddings and the plateau at the loss of guessing."""

from __future__ import annotations

import logging
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from impresa.config.experiment import ExperimentConfig, LossType
from impresa.losses.kinds import KINDS
from impresa.tasks.alignment.batch import Batch
from impresa.training.module import TrainingModule

logger = logging.getLogger(__name__)

STEPS_AFTER_WARMUP = 50
LOSS_MARGIN = 0.02
LARGEST_MEAN_COSINE = 0.999


class CollapseWatch(Callback):
    """Warns once when a contrastive training seems stuck, and names the likely cause.

    From 50 steps after the warm-up on, it looks at the mean loss over as many steps: within 0.02 of what guessing
    gives (ln B for `clip`, 1 + ln B for `siglip`), or embeddings of different samples whose mean cosine is above 0.999.
    """

    def __init__(self, config: ExperimentConfig) -> None:
        self.config = config
        self.has_warned = False
        self._excess: list[float] = []

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: list[Batch], batch_idx: int
    ) -> None:
        assert isinstance(module, TrainingModule)
        if self.has_warned or module.step <= module.schedule.warmup_steps:
            return
        world = trainer.world_size if self.config.losses.gather_distributed else 1
        guessing = sum(len(b) * guessing_loss(self.config.losses.type, len(b) * world) for b in batch)
        self._excess.append(float(outputs["contrastive"]) - guessing / sum(map(len, batch)))
        if len(self._excess) < STEPS_AFTER_WARMUP:
            return
        cosine, excess = float(outputs["mean_cosine"]), sum(self._excess) / len(self._excess)
        self._excess.clear()
        if cosine > LARGEST_MEAN_COSINE:
            self._warn(module, f"all inputs get nearly the same embedding (mean cosine {cosine:.4f})")
        elif abs(excess) < LOSS_MARGIN:
            self._warn(module, "the loss is that of guessing")

    def _warn(self, module: TrainingModule, what: str) -> None:
        self.has_warned = True
        optimization = self.config.optimization
        cause = f"most likely too large steps: lower optimization.lr ({optimization.lr:g})"
        if module.schedule.warmup_steps < STEPS_AFTER_WARMUP:
            cause += ", lengthen optimization.warmup_epochs"
        if optimization.clip_grad == 0:
            cause += ", clip gradients (optimization.clip_grad=1)"
        logger.warning(f"step {module.step}: {what}; {cause}, or images and captions do not belong together")


def guessing_loss(kind: LossType, batch_size: int) -> float:
    """Loss of a model that knows nothing; see `LossKind.loss_at_chance`."""
    return KINDS[kind].loss_at_chance(batch_size)
