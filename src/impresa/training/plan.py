"""Length of a run, and its intervals of logging, validation and saving, counted in optimizer steps.

A step is named by the number of steps done once it is over: the first is step 1, the last `total_steps`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from impresa.config.experiment import TrainerConfig
from impresa.config.types import LoggingConfig

SHORT_RUN_STEPS = 200


@dataclass(frozen=True)
class Plan:
    """Length and intervals of a run."""

    steps_per_epoch: int
    """Optimizer steps of one pass over the training data; the last one may have fewer batches than the others."""
    total_steps: int
    """Optimizer steps of the whole run."""
    logging: LoggingConfig
    """The intervals."""

    def epoch_of(self, step: int) -> int:
        """Epoch, from 0, that step number `step` belongs to."""
        return max(step - 1, 0) // self.steps_per_epoch

    def logs_after(self, step: int) -> bool:
        """True where training metrics are written: at the first step, at every interval and at the end."""
        return step in (1, self.total_steps) or step % self.logging.log_interval == 0

    def evaluates_after(self, step: int) -> bool:
        """True where a validation follows: at every interval, at the end, and each epoch when that is shorter."""
        return self._is_due(step, self.logging.eval_interval)

    def saves_after(self, step: int) -> bool:
        """True where a checkpoint follows: at every interval, at the end, and each epoch when that is shorter."""
        return self._is_due(step, self.logging.save_interval)

    def _is_due(self, step: int, interval: int) -> bool:
        ends_epoch = self.steps_per_epoch < interval and step % self.steps_per_epoch == 0
        return ends_epoch or step % interval == 0 or step == self.total_steps


def make_plan(config: TrainerConfig, batches_per_epoch: int) -> Plan:
    """The plan of a run whose training data give each process `batches_per_epoch` batches (at least 1) an epoch.

    Runs of fewer than `SHORT_RUN_STEPS` steps log every step.
    """
    steps_per_epoch = -(-batches_per_epoch // config.accumulate_grad_batches)
    total_steps = config.epochs * steps_per_epoch
    total_steps = min(total_steps, config.max_steps or total_steps)
    logging = config.logging if total_steps >= SHORT_RUN_STEPS else replace(config.logging, log_interval=1)
    return Plan(steps_per_epoch, total_steps, logging)
