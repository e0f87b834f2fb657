"""Verdicts on variants from their scores over seeds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["better", "worse", "no difference shown", "no verdict"]
LEAST_SEEDS = 5
"""With fewer no verdict is given, only estimates."""


@dataclass(frozen=True)
class Estimate:
    """Mean of a variant over its seeds, with a t interval."""

    mean: float
    low: float
    high: float
    sd: float
    """Standard deviation over seeds."""
    num_seeds: int


@dataclass(frozen=True)
class Difference:
    """A variant minus the base."""

    mean: float
    low: float
    high: float
    """Bounds of the simultaneous interval (family-wise 95%)."""
    p_value: float | None
    """Adjusted for all variants of the study."""
    verdict: Verdict
    num_seeds: int
    """Seeds that both have."""


@dataclass(frozen=True)
class Comparison:
    """All variants of a study against its base, on one metric."""

    method: str
    """Sentence that names the method and its assumptions, for under the table."""
    estimates: tuple[Estimate | None, ...]
    """By variant, the base first; None where no run finished."""
    differences: tuple[Difference | None, ...]
    """By variant; None for the base, and where fewer than two seeds are shared with it."""
    seed_correlation: float | None
    """Correlation between variants of the scores of equal seeds, as it was found."""
