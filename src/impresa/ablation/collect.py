"""Reading what the runs of a study found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from impresa.ablation.plan import PlannedRun
from impresa.ablation.results import CURVES, RunResult, StudyResult
from impresa.ablation.study import Study, Variant
from impresa.errors import CheckpointError
from impresa.evaluation.figures import figures
from impresa.evaluation.results import read_evaluation
from impresa.foreign_text import printable
from impresa.reports.charts import LARGEST, Curve, read_history
from impresa.run_dir.cost import read_cost
from impresa.run_dir.layout import MANIFEST

MAX_POINTS = 100
"""Of a stored curve; those of longer ones lie at even distances."""


def collect(
    study: Study,
    variants: Sequence[Variant],
    planned: Sequence[PlannedRun],
    study_dir: Path,
    failures: Mapping[str, str],
) -> StudyResult:
    """Read the results of a study, as far as it has come.

    Args:
        study: what was asked.
        variants: its variants, the base first.
        planned: a run for each variant and seed, in any order.
        study_dir: where the runs' folders are.
        failures: the last line of each run that failed, by its folder.

    Returns:
        A result in which a run that cannot be read has failed, with the line that says why.
    """
    found: dict[str, RunResult] = {}
    for run in planned:  # variants that come to the same config share a run
        if run.folder not in found:
            found[run.folder] = _read(run, study_dir / run.folder, failures.get(run.folder))
    folders = {(run.variant.name, run.seed): run.folder for run in planned}
    places = [(variant.name, seed) for variant in variants for seed in study.seeds]
    runs = (replace(found[folders[place]], variant=place[0], seed=place[1]) for place in places)
    return StudyResult(study, tuple(variants), tuple(runs))


def _read(run: PlannedRun, run_dir: Path, failure: str | None) -> RunResult:
    unread = RunResult(run.variant.name, run.seed, run.folder, "missing")
    if failure is not None:
        return replace(unread, status="failed", reason=printable(failure))
    if not (run_dir / MANIFEST).is_file():
        return unread
    try:
        evaluation = read_evaluation(run_dir, gallery=False)
        if evaluation is None:
            raise CheckpointError(f"{run_dir}: has no evaluation; `impresa eval {run_dir}` makes one")
        cost = read_cost(run_dir)
        curves = {name: _thinned(curve) for name, curve in read_history(run_dir).items() if name in CURVES}
    except (CheckpointError, OSError) as error:
        return replace(unread, status="failed", reason=printable(" ".join(str(error).split())))
    kept = {name: value for name, value in figures(evaluation).items() if abs(value) < LARGEST}  # NaN is not
    return replace(unread, status="finished", figures=kept, cost=cost, curves=curves)


def _thinned(curve: Curve) -> Curve:
    """The curve with at most `MAX_POINTS` of its points, the first and the last among them."""
    last = len(curve.steps) - 1
    if last < MAX_POINTS:
        return curve
    kept = [round(i * last / (MAX_POINTS - 1)) for i in range(MAX_POINTS)]
    return Curve(tuple(curve.steps[i] for i in kept), tuple(curve.values[i] for i in kept))
