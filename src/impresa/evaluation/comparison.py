"""Runs side by side on the same items: each figure, and its difference to the first run's with a paired interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from impresa.errors import DataError
from impresa.evaluation.bootstrap import Interval, Statistic, difference, intervals
from impresa.evaluation.figures import Figure, model_figures
from impresa.evaluation.results import Evaluation


@dataclass(frozen=True)
class Difference:
    """A figure of a later run minus that of the first."""

    value: float
    interval: Interval | None
    """95%, paired over items; None for figures that have none, such as the median rank."""

    @property
    def differs(self) -> bool | None:
        """True if the interval excludes 0; None for a difference without one."""
        if self.interval is None:
            return None if self.value else False
        return self.interval.excludes_zero


@dataclass(frozen=True)
class Compared:
    """One figure of all runs."""

    values: tuple[float | None, ...]
    """By run; None where it was not measured."""
    differences: tuple[Difference | None, ...]
    """By run; None for the first, and where one of the two was not measured."""


@dataclass(frozen=True)
class Comparison:
    """All figures that at least two runs share."""

    data: str
    runs: tuple[str, ...]
    num_items: int
    """Images."""
    figures: dict[str, Compared]
    """By name of `impresa.evaluation.figures`."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON types; each difference says if it `differs`."""
        tree = asdict(self)
        for name, found in self.figures.items():
            for place, one in enumerate(found.differences):
                if one is not None:
                    tree["figures"][name]["differences"][place]["differs"] = one.differs
        return tree


def compare(runs: Sequence[str], evaluations: Sequence[Evaluation]) -> Comparison:
    """Compare evaluations of runs, on the same data, with the first of them.

    Raises:
        DataError: an evaluation has other items than the first.
    """
    first = evaluations[0]
    for run, evaluation in zip(runs, evaluations, strict=True):
        if evaluation.items != first.items:
            fault = f"{run}: of {first.data} it can use other images, captions or questions than {runs[0]}"
            raise DataError(f"{fault}; compare on data of which both can use all, with --data")
    tables = [{figure.name: figure for figure in model_figures(evaluation)} for evaluation in evaluations]
    shared = [name for name in tables[0] if any(name in table for table in tables[1:])]
    differences = {
        (name, place): found
        for name in shared
        for place, table in enumerate(tables[1:], start=1)
        if (found := paired(tables[0][name], table.get(name))) is not None
    }
    bounds = intervals(differences)

    def of(name: str, place: int) -> Difference | None:
        if place == 0 or name not in tables[place]:
            return None
        return Difference(tables[place][name].value - tables[0][name].value, bounds.get((name, place)))

    places = range(len(runs))
    figures = {
        name: Compared(
            values=tuple(table[name].value if name in table else None for table in tables),
            differences=tuple(of(name, place) for place in places),
        )
        for name in shared
    }
    return Comparison(first.data, tuple(runs), first.num_images, figures)


def paired(first: Figure, second: Figure | None) -> Statistic | None:
    """The difference item by item; None where a figure is no function of items, or was measured on others."""
    if second is None or not (isinstance(first.statistic, Statistic) and isinstance(second.statistic, Statistic)):
        return None
    counts = zip(first.statistic.counts, second.statistic.counts, strict=True)
    return difference(first.statistic, second.statistic) if all(np.array_equal(a, b) for a, b in counts) else None
