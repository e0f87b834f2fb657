"""What a study found: the figures, costs and curves of each run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from impresa.ablation.study import Study, Variant
from impresa.run_dir.cost import Cost

Status = Literal["finished", "failed", "missing"]


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
    """Of the run's evaluation, see `impresa.evaluation.figures`."""
    cost: Cost | None = None


@dataclass(frozen=True)
class StudyResult:
    """All runs of a study."""

    study: Study
    variants: tuple[Variant, ...]
    """The base first."""
    runs: tuple[RunResult, ...]
    """A run for each variant and seed, in the order of variants, then seeds."""
