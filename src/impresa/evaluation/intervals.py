"""An evaluation with an interval for each of its figures, and margins; and the name of what it was measured on."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import replace
from hashlib import blake2b

from impresa.evaluation.bootstrap import Interval, intervals
from impresa.evaluation.comparison import paired
from impresa.evaluation.figures import figures_by_row
from impresa.evaluation.results import HISTOGRAM, RIDGE, Evaluation, Margin

DECIDING = "mrr"
"""The figure that says which of two finds more: it counts every rank, in test data of any size."""


def with_intervals(evaluation: Evaluation) -> Evaluation:
    """The evaluation with 95% intervals over items of all figures that have one, those of baselines too, and with the
    margins between the model and baselines that are fitted."""
    rows = {row: {figure.name: figure for figure in found} for row, found in figures_by_row(evaluation).items()}
    statistics = {
        (row, name): figure.statistic
        for row, found in rows.items()
        for name, figure in found.items()
        if figure.statistic is not None
    }
    compared = {name: (rows["model"][DECIDING], rows[name][DECIDING]) for name in (HISTOGRAM, RIDGE) if name in rows}
    differences = {
        ("margin", name): difference
        for name, (model, baseline) in compared.items()
        if (difference := paired(baseline, model)) is not None
    }
    bounds = intervals({**statistics, **differences})
    by_row: dict[str, dict[str, Interval]] = {}
    for (row, name), interval in bounds.items():
        if row in rows:
            by_row.setdefault(row, {})[name] = interval
    margins = {
        name: Margin(model.value, baseline.value, bounds.get(("margin", name)))
        for name, (model, baseline) in compared.items()
    }
    return replace(evaluation, intervals=by_row, margins=margins)


def digest(names: Iterable[Hashable]) -> str:
    """The same for the same names in the same order, and for no others."""
    return blake2b("\n".join(map(repr, names)).encode(), digest_size=16).hexdigest()
