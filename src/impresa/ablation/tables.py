"""The tables of a study, which page, Markdown and terminal print alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import fmean

from impresa.ablation.findings import MARKS, Findings, amount, has_interval, printable_kind, verdict_of
from impresa.ablation.results import StudyResult
from impresa.ablation.statistics import Difference, Estimate
from impresa.ablation.study import Variant
from impresa.evaluation.figures import FigureKind
from impresa.reports.tables import Row, Table
from impresa.run_dir.cost import Cost, duration

NONE = "-"
_STEP = 1000


@dataclass(frozen=True)
class CostKind:
    """How a cost is shown."""

    label: str
    value: Callable[[Cost], float | None]
    show: Callable[[float], str]


def scaled(number: float) -> str:
    """A large number with three digits: 1.23M."""
    units = ["", "k", "M", "G", "T", "P"]
    while abs(number) >= _STEP - 0.5 and len(units) > 1:
        number /= _STEP
        del units[0]
    return f"{number:.3g}{units[0]}"


COSTS = (
    CostKind("parameters", lambda cost: cost.parameters, scaled),
    CostKind("trainable", lambda cost: cost.trainable_parameters, scaled),
    CostKind("FLOPs per sample", lambda cost: cost.flops_per_sample, scaled),
    CostKind("samples/s", lambda cost: cost.samples_per_second, scaled),
    CostKind("peak memory", lambda cost: cost.peak_memory_bytes, lambda size: f"{scaled(size)}B"),
    CostKind("training time", lambda cost: cost.training_seconds, duration),
)


def make_tables(findings: Findings) -> list[Table]:
    """The judge's table, one of the further metrics and one of costs, each with a row for a variant."""
    others = [_further(findings)] if len(findings.comparisons) > 1 else []
    costs = [_costs(findings)] if any(run.cost for run in findings.result.runs) else []
    return [_judge(findings), *others, *costs]


def mean_cost(result: StudyResult, variant: Variant, kind: CostKind) -> float | None:
    """Mean of a cost over the finished runs of a variant; None where none knows it."""
    found = [kind.value(run.cost) for run in result.runs_of(variant) if run.cost]
    known = [value for value in found if value is not None]
    return fmean(known) if known else None


def correlation(findings: Findings) -> str:
    """The sentence on the correlation of seeds, empty where it is unknown."""
    found = findings.judge.seed_correlation
    if found is None or not math.isfinite(found):
        return ""
    shown = f"{found:.2f}".replace("-", "\N{MINUS SIGN}")
    return f"Scores of equal seeds correlate by {shown} between variants."


def _judge(findings: Findings) -> Table:
    judge, kind = findings.judge, findings.kind
    rows = [
        Row(name, (_mean(estimate, kind), *_cells(difference, kind), f"{estimate.num_seeds if estimate else 0}"))
        for name, estimate, difference in zip(findings.names, judge.estimates, judge.differences, strict=True)
    ]
    unit = f" in {kind.unit}" if kind.unit else ""
    note = (
        f"{kind.label} is the judge, named before the first run. Mean ± half of its 95% interval over seeds; "
        f"difference to the base{unit} with simultaneous 95% interval."
    )
    figures = " ".join(filter(None, (judge.method, correlation(findings))))
    return Table(
        f"{kind.label}, the judge",
        (kind.label, "difference", "verdict", "seeds"),
        {"": tuple(rows)},
        figures=figures,
        note=note,
    )


def _cells(difference: Difference | None, kind: FigureKind) -> tuple[str, str]:
    if difference is None:
        return NONE, NONE
    verdict = verdict_of(difference)
    return _difference(difference, kind), f"{MARKS[verdict]} {verdict}"


def _further(findings: Findings) -> Table:
    columns: list[str] = []
    cells: list[list[str]] = [[] for _ in findings.names]
    for metric, comparison in list(findings.comparisons.items())[1:]:
        kind = printable_kind(metric)
        columns += [kind.label, f"difference, {kind.unit}" if kind.unit else "difference"]
        for row, estimate, difference in zip(cells, comparison.estimates, comparison.differences, strict=True):
            row += [_mean(estimate, kind), _difference(difference, kind) if difference else NONE]
    rows = tuple(Row(name, tuple(row)) for name, row in zip(findings.names, cells, strict=True))
    note = "Estimates with intervals as above; no verdicts are given on them, since one metric is the judge."
    return Table("Further metrics", tuple(columns), {"": rows}, note=note)


def _costs(findings: Findings) -> Table:
    result = findings.result
    base = result.variants[0]
    found = {kind.label: [mean_cost(result, variant, kind) for variant in result.variants] for kind in COSTS}
    if found["trainable"] == found["parameters"]:
        del found["trainable"]
    known = [kind for kind in COSTS if any(cost is not None for cost in found.get(kind.label, ()))]

    def cells(variant: Variant) -> Iterator[str]:
        for kind in known:
            cost, of_base = mean_cost(result, variant, kind), mean_cost(result, base, kind)
            yield NONE if cost is None else kind.show(cost) + (_relative(cost, of_base) if variant is not base else "")

    rows = tuple(
        Row(name, tuple(cells(variant))) for name, variant in zip(findings.names, result.variants, strict=True)
    )
    note = (
        "Means over the finished runs, in brackets relative to the base. Speed, memory and time are those of the "
        "machine and of what else ran on it."
    )
    return Table("Costs", tuple(kind.label for kind in known), {"": rows}, note=note)


def _mean(estimate: Estimate | None, kind: FigureKind) -> str:
    if estimate is None:
        return NONE
    half = (estimate.high - estimate.low) / 2
    return format(estimate.mean, kind.format) + (f" ± {amount(half, kind)}" if math.isfinite(half) else "")


def _difference(difference: Difference, kind: FigureKind) -> str:
    mean, low, high = (amount(value, kind, "+") for value in (difference.mean, difference.low, difference.high))
    return f"{mean} ({low} to {high})" if has_interval(difference) else mean


def _relative(cost: float, of_base: float | None) -> str:
    """How much more than the base's; nothing where both are the same to half a percent."""
    if not of_base or abs(cost / of_base - 1) < 0.005:
        return ""
    return f" ({cost / of_base - 1:+.0%})".replace("-", "\N{MINUS SIGN}")
