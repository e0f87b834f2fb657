"""An evaluation with an interval for each of its figures, and the name of what it was measured on."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import replace
from hashlib import blake2b

from impresa.evaluation.bootstrap import Interval, intervals
from impresa.evaluation.figures import figures_by_row
from impresa.evaluation.results import Evaluation


def with_intervals(evaluation: Evaluation) -> Evaluation:
    """The evaluation with 95% intervals over items of all figures that have one, those of baselines too."""
    statistics = {
        (row, figure.name): figure.statistic
        for row, figures in figures_by_row(evaluation).items()
        for figure in figures
        if figure.statistic is not None
    }
    found: dict[str, dict[str, Interval]] = {}
    for (row, name), interval in intervals(statistics).items():
        found.setdefault(row, {})[name] = interval
    return replace(evaluation, intervals=found)


def digest(names: Iterable[Hashable]) -> str:
    """The same for the same names in the same order, and for no others."""
    return blake2b("\n".join(map(repr, names)).encode(), digest_size=16).hexdigest()
