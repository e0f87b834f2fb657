"""The learning rate as a function of the step: no state, so that a resumed run needs none."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

from impresa.config.experiment import OptimizationConfig, SchedulerName
from impresa.training.plan import Plan

logger = logging.getLogger(__name__)

CUT_WARMUP_TO = 10
"""A warm-up as long as the run is cut to one part in so many of it."""


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up to the peak, then down to `min_lr` by half a cosine or a line, or constant."""

    kind: SchedulerName
    total_steps: int
    warmup_steps: int
    min_lr: float

    def learning_rate(self, step: int, peak: float) -> float:
        """Learning rate of step number `step`, from 1; a `peak` below `min_lr` stays as it is after the warm-up."""
        if step <= self.warmup_steps:
            return peak * step / self.warmup_steps
        floor = min(self.min_lr, peak)
        if self.kind == "constant":
            return peak
        progress = (step - self.warmup_steps) / (self.total_steps - self.warmup_steps)
        share = (1 + math.cos(math.pi * progress)) / 2 if self.kind == "cosine" else 1 - progress
        return floor + (peak - floor) * share


def make_schedule(config: OptimizationConfig, plan: Plan, warmup_steps: int | None = None) -> Schedule:
    """The schedule of a run; a warm-up as long as the run or longer is cut to fit, with a notice.

    `warmup_steps`: those of a run that is continued, which stay as they were though its length changes.
    """
    if warmup_steps is not None:
        return Schedule(config.scheduler, plan.total_steps, warmup_steps, config.min_lr)
    warmup_steps = round(config.warmup_epochs * plan.steps_per_epoch)
    if warmup_steps >= plan.total_steps:
        fitting = plan.total_steps // CUT_WARMUP_TO
        fault = f"a warm-up of {warmup_steps} steps does not fit a run of {plan.total_steps}"
        logger.warning(f"optimization.warmup_epochs: {fault}; cut to {fitting}")
        warmup_steps = fitting
    return Schedule(config.scheduler, plan.total_steps, warmup_steps, config.min_lr)
