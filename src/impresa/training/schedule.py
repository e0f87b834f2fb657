"""The learning rate as a function of the step: no state, so that a resumed run needs none."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

from impresa.config.optimization import OptimizationConfig, SchedulerName, warmup_key
from impresa.training.plan import Plan

logger = logging.getLogger(__name__)

CUT_WARMUP_TO = 10
"""A warm-up as long as the run is cut to one part in so many of it."""


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up to the peak, then down to `min_lr` by half a cosine or a line, or constant, or constant and down
    by a line over the last `cooldown_steps`."""

    kind: SchedulerName
    total_steps: int
    warmup_steps: int
    min_lr: float
    cooldown_steps: int = 0

    def learning_rate(self, step: int, peak: float) -> float:
        """Learning rate of step number `step`, from 1; a `peak` below `min_lr` stays as it is after the warm-up."""
        if step <= self.warmup_steps:
            return peak * step / self.warmup_steps
        falling = self.cooldown_steps if self.kind == "const_cooldown" else self.total_steps - self.warmup_steps
        left = self.total_steps - step
        if self.kind == "constant" or left >= falling:
            return peak
        floor, progress = min(self.min_lr, peak), (falling - left) / falling
        share = (1 + math.cos(math.pi * progress)) / 2 if self.kind == "cosine" else 1 - progress
        return floor + (peak - floor) * share


def make_schedule(config: OptimizationConfig, plan: Plan, warmup_steps: int | None = None) -> Schedule:
    """The schedule of a run. With a notice, a warm-up as long as the run or longer is cut to fit, and a cooldown to the
    steps that the warm-up leaves.

    `warmup_steps`: those of a run that is continued, which stay as they were though its length changes.
    """
    warmup = _warmup_steps(config, plan) if warmup_steps is None else warmup_steps
    cooldown, room = round(config.cooldown_epochs * plan.steps_per_epoch), max(0, plan.total_steps - warmup)
    if config.scheduler == "const_cooldown" and cooldown > room:
        fault = f"a cooldown of {cooldown} steps does not fit behind the warm-up in a run of {plan.total_steps}"
        logger.warning(f"optimization.cooldown_epochs: {fault}; cut to {room}")
    return Schedule(config.scheduler, plan.total_steps, warmup, config.min_lr, min(cooldown, room))


def _warmup_steps(config: OptimizationConfig, plan: Plan) -> int:
    asked = config.warmup_steps
    steps = round(config.warmup_epochs * plan.steps_per_epoch) if asked is None else asked
    if steps < plan.total_steps:
        return steps
    fitting = plan.total_steps // CUT_WARMUP_TO
    fault = f"a warm-up of {steps} steps does not fit a run of {plan.total_steps}"
    logger.warning(f"{warmup_key(config)}: {fault}; cut to {fitting}")
    return fitting
