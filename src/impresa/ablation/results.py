"""Results of a study: the figures, costs and curves of each run, in `ablation.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import TypeAdapter

from impresa.ablation.statistics import Comparison
from impresa.ablation.study import Study, Variant
from impresa.files import write_atomic
from impresa.json_files import read_json
from impresa.reports.charts import Curve
from impresa.run_dir.cost import Cost

Status = Literal["finished", "failed", "missing"]
CURVES = {
    "val_loss": "Validation loss",
    "val_recall": "Validation R@1, mean of both directions",
    "val_exact_match": "Validation exact match",
    "val_vqa_accuracy": "Validation VQA accuracy",
}
"""Columns of a run's metrics that are kept and drawn, and the titles of their charts."""


@dataclass(frozen=True)
class RunResult:
    """One variant trained with one seed."""

    variant: str
    seed: int
    """Of the study; the run's own seed is that plus the variant's `seed_offset`."""
    folder: str
    """The run directory, relative to the study's."""
    status: Status
    reason: str = ""
    """The line that a failed run ended with."""
    figures: dict[str, float] = field(default_factory=dict)
    """Of the run's evaluation, see `impresa.evaluation.figures`; those that are finite."""
    cost: Cost | None = None
    curves: dict[str, Curve] = field(default_factory=dict)
    """Those of `CURVES` that the run has recorded."""


@dataclass(frozen=True)
class StudyResult:
    """All runs of a study."""

    study: Study
    variants: tuple[Variant, ...]
    """The base first."""
    runs: tuple[RunResult, ...]
    """A run for each variant and seed, in the order of variants, then seeds."""

    def __post_init__(self) -> None:
        expected = [(variant.name, seed) for variant in self.variants for seed in self.study.seeds]
        if not expected or expected != [(run.variant, run.seed) for run in self.runs]:
            raise ValueError("there is not one run for each variant and seed, in their order")
        if not self.study.metrics:
            raise ValueError("there is no metric to judge by")

    @property
    def judge(self) -> str:
        """The metric that verdicts are given on."""
        return self.study.metrics[0]

    def runs_of(self, variant: Variant) -> tuple[RunResult, ...]:
        """The runs of a variant, one for each seed."""
        return tuple(run for run in self.runs if run.variant == variant.name)

    def with_status(self, status: Status) -> tuple[RunResult, ...]:
        return tuple(run for run in self.runs if run.status == status)

    def scores(self, metric: str) -> np.ndarray:
        """One metric of all runs: (variants, seeds), NaN where there is none."""
        values = [run.figures.get(metric, np.nan) for run in self.runs]
        return np.array(values).reshape(len(self.variants), len(self.study.seeds))


@dataclass(frozen=True)
class _Stored:
    """The file."""

    result: StudyResult
    comparisons: dict[str, Any]
    """By metric; for other programs, as a reader here makes them from the runs again."""


def write_json(result: StudyResult, comparisons: Mapping[str, Comparison], path: Path) -> None:
    """Write the runs of a study, and what was made of them by metric; a number that is not finite is null."""
    stored = _Stored(result, dict(comparisons))
    write_atomic(path, TypeAdapter(_Stored).dump_json(stored) + b"\n")


def read_results(path: Path) -> StudyResult:
    """The runs of a study from its `ablation.json`.

    Raises:
        CheckpointError: the file is missing or was not written by this program.
    """
    return read_json(path, _Stored, fix="run the study again, which trains only what is missing").result
