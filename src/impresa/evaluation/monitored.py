"""The monitored metric over a training run: when it was best, and whether it has been worse for long."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

Mode = Literal["min", "max"]
LONG = 1 / 3
"""Share of a run that is a long time without a value as good as the best."""


@dataclass
class Monitored:
    """The values of one metric, a validation after the other."""

    mode: Mode
    """Direction in which the metric gets better."""
    points: list[tuple[int, float]] = field(default_factory=list, init=False)
    """(step, value) of each validation."""
    best_step: int = field(default=0, init=False)
    """The first step with the best value."""
    num_since: int = field(default=0, init=False)
    """Validations since then."""
    _best: float = field(default=math.inf, init=False)
    _last_as_good: int = field(default=0, init=False)

    def add(self, step: int, value: float) -> None:
        """Add the value of the validation after optimizer step number `step`; NaN is worse than any other."""
        loss = as_loss(value, self.mode)
        self.num_since += 1
        if loss < self._best or not self.points:
            self.best_step, self.num_since = step, 0
        if loss <= self._best or not self.points:
            self._best, self._last_as_good = loss, step
        self.points.append((step, value))

    def is_worse_for_long(self, total_steps: int) -> bool:
        """True if every validation of more than a third of `total_steps` was worse than the best before."""
        return bool(self.points) and self.points[-1][0] - self._last_as_good > total_steps * LONG


def monitored(mode: Mode, points: Iterable[tuple[int, float]]) -> Monitored:
    """A metric with the values that it has had."""
    found = Monitored(mode)
    for step, value in points:
        found.add(step, value)
    return found


def as_loss(value: float, mode: Mode) -> float:
    """The value as a number that is the smaller the better; infinite for NaN."""
    return math.inf if math.isnan(value) else value if mode == "min" else -value
