"""Said before a study starts: how many runs, how long they will take, and how small a difference they can find."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from impresa.ablation.findings import count
from impresa.ablation.judging import ALPHA, LEAST_SEEDS
from impresa.ablation.launchers import threads_of
from impresa.ablation.plan import PlannedRun
from impresa.ablation.power import smallest_difference, spread_of
from impresa.ablation.progress import duration
from impresa.ablation.runner import Standing
from impresa.ablation.study import NULL, Study
from impresa.ablation.timing import RunTime
from impresa.config.experiment import ExperimentConfig
from impresa.errors import CheckpointError
from impresa.evaluation.figures import figures, kind_of
from impresa.evaluation.results import read_evaluation
from impresa.run_dir.environment import read_environment

POWER = 0.8


def numbers(study: Study, planned: Sequence[PlannedRun], standing: Standing) -> str:
    """How many runs there are."""
    num_variants, done, damaged = len({run.variant.name for run in planned}), standing.done, standing.damaged
    num_different = len(done) + len(standing.to_do) + len(damaged)
    equal = f", {num_different} of them different" if num_different < len(planned) else ""
    broken = f", {len(damaged)} damaged" if damaged else ""
    product = f"{num_variants} variants x {count(len(study.seeds), 'seed')}"
    have = f"{len(done)} finished{broken}, {len(standing.to_do)} to do"
    return f"{count(len(planned), 'run')} ({product}{equal}): {have}"


def time_line(estimate: RunTime | None, num_runs: int, num_jobs: int) -> str:
    """How long the runs that are left will take."""
    if not num_runs:
        return "time: nothing is left to train"
    if estimate is None:
        return "time: unknown until a run has finished"
    at_once = f", {num_jobs} at once" if num_jobs > 1 else ""
    whole, each = duration(estimate.in_all(num_runs, num_jobs)), duration(max(estimate.seconds, 1))
    return f"time: about {whole}{at_once} ({each} a run, {estimate.source})"


def power_lines(study: Study, planned: Sequence[PlannedRun], study_dir: Path | None) -> Iterator[str]:
    """The smallest difference that the study finds with `POWER`, from the finished runs' spread over seeds."""
    metric, num_seeds = study.metrics[0], max(len(study.seeds), LEAST_SEEDS)
    if len(study.seeds) < LEAST_SEEDS:
        yield f"{count(len(study.seeds), 'seed')}: no verdict is given with fewer than {LEAST_SEEDS}, only estimates"
    names = list(dict.fromkeys(run.variant.name for run in planned))
    num_controls = int(NULL in names)
    num_variants = max(len(names) - 1 - num_controls, 1)
    kind = kind_of(metric)
    chance = f"{POWER:.0%} chance, at {ALPHA:.0%} false alarms over {count(len(names) - 1, 'variant')}"

    def smallest(sd: float, correlation: float) -> float:
        return smallest_difference(sd, num_variants, num_seeds, correlation, power=POWER, num_controls=num_controls)

    spread = spread_of(_scores(study, planned, study_dir, names)) if study_dir is not None else None
    if spread is None:
        sds = smallest(1.0, 0.0)
        yield (
            f"power: {num_seeds} seeds can see {sds:.1f} standard deviations of {kind.label} over seeds "
            f"({chance}); --pilot 3 trains three seeds of the base first and tells it in {kind.unit or 'its own units'}"
        )
        return
    found = smallest(spread.sd, spread.seed_correlation)
    if not math.isfinite(found) or found == 0:
        yield f"power: unknown, for {kind.label} is the same in all finished runs"
        return
    by = f"seeds vary by {_amount(spread.sd, metric)} ({count(spread.df, 'degree')} of freedom)"
    yield f"power: {num_seeds} seeds can see {_amount(found, metric)} of {kind.label} ({chance}); {by}"


def threads_line(run_dirs: Sequence[Path], config: ExperimentConfig, num_jobs: int) -> str | None:
    """A warning where finished runs have computed with another number of threads; None where all are alike."""
    ours = threads_of(config, num_jobs)
    others = set[int]()
    for run_dir in run_dirs:
        with suppress(CheckpointError):
            environment = read_environment(run_dir)
            if not environment.get("gpus") and environment.get("threads", ours) != ours:
                others.add(environment["threads"])
    if not others:
        return None
    theirs = " or ".join(map(str, sorted(others)))
    return (
        f"threads: finished runs have used {theirs} each, those to come use {ours}: equal up to rounding, not to the "
        "bit; another --jobs or OMP_NUM_THREADS changes that"
    )


def _scores(study: Study, planned: Sequence[PlannedRun], study_dir: Path, names: Sequence[str]) -> np.ndarray:
    """The judge's values (V, S) of the runs that have finished, NaN for the others."""
    values = np.full((len(names), len(study.seeds)), np.nan)
    for run in planned:
        if run.variant.name != NULL:
            with suppress(CheckpointError):
                evaluation = read_evaluation(study_dir / run.folder)
                found = math.nan if evaluation is None else figures(evaluation).get(study.metrics[0], math.nan)
                values[names.index(run.variant.name), study.seeds.index(run.seed)] = found
    return values


def _amount(difference: float, metric: str) -> str:
    kind = kind_of(metric)
    return f"{difference * kind.scale:.2g} {kind.unit}".rstrip()
