"""The watch on the monitored metric: says once that a run gets no better, and ends it early if that is wanted."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from impresa.config.experiment import TrainerConfig
from impresa.evaluation.monitored import Monitored

logger = logging.getLogger(__name__)


class Monitor:
    """Looks at `trainer.checkpoint.monitor` after each validation.

    Args:
        config: metric, its direction, and the patience.
        total_steps: optimizer steps of the whole run.
    """

    def __init__(self, config: TrainerConfig, total_steps: int) -> None:
        self._config = config
        self._total_steps = total_steps
        self._course = Monitored(config.checkpoint.mode)
        self._has_warned = False

    @property
    def is_exhausted(self) -> bool:
        """True if training should stop early."""
        patience = self._config.early_stopping_patience
        return patience is not None and self._course.num_since >= patience

    def after_validation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Look at the metrics of the validation after step number `step`; one warning in a run."""
        if self._add(step, metrics[self._config.checkpoint.monitor]):
            stop = "" if self._config.early_stopping_patience else "; trainer.early_stopping_patience stops such runs"
            logger.warning(f"step {step}: {self._best()} of {self._total_steps} and has been worse since{stop}")

    def why_stopped(self, step: int) -> str:
        """The line that ends a run early after step number `step`."""
        patience = f"trainer.early_stopping_patience is {self._config.early_stopping_patience}"
        return f"stopped early after step {step} ({patience}): {self._best()}; resumed with null there, it goes on"

    def points(self) -> list[tuple[int, float]]:
        """(step, value) of each validation, for `resume`."""
        return self._course.points

    def resume(self, points: Sequence[tuple[int, float]]) -> None:
        """Take over the validations of an earlier part of the run, and what has been said of them."""
        for step, value in points:
            self._add(step, value)

    def _add(self, step: int, value: float) -> bool:
        """Add a value; True if a warning is due."""
        self._course.add(step, value)
        is_due = not self._has_warned and self._course.is_worse_for_long(self._total_steps)
        self._has_warned |= is_due
        return is_due

    def _best(self) -> str:
        return f"{self._config.checkpoint.monitor} was best at step {self._course.best_step}"
