"""How long the runs of a study will take: from runs that have finished, else from a short timing of the base."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from impresa.config.experiment import ExperimentConfig
from impresa.errors import CheckpointError
from impresa.run_dir.environment import read_environment
from impresa.training.pace import pace_elsewhere


@dataclass(frozen=True)
class RunTime:
    """Time of one run."""

    seconds: float
    source: str
    """Where it comes from, and what is assumed, for people."""

    def in_all(self, num_runs: int, num_jobs: int) -> float:
        """Seconds for so many runs, so many at once."""
        return math.ceil(num_runs / num_jobs) * self.seconds


def from_finished(run_dirs: Sequence[Path]) -> RunTime | None:
    """The mean time of the finished runs that were never resumed; None without one."""
    found: list[float] = []
    for run_dir in run_dirs:
        with suppress(CheckpointError, KeyError, TypeError, ValueError):  # times of a damaged file
            environment = read_environment(run_dir)
            if not environment.get("resumed"):
                start, end = (datetime.fromisoformat(environment[name]) for name in ("started", "finished"))
                found.append((end - start).total_seconds())
    if not found:
        return None
    runs = "one finished run" if len(found) == 1 else f"{len(found)} finished runs"
    return RunTime(sum(found) / len(found), f"by {runs}")


def from_trial(config: ExperimentConfig, environment: Mapping[str, str]) -> RunTime:
    """A timing of some steps of a config in a process of its own; nothing is written.

    Args:
        config: of the base.
        environment: variables of the process, those of a run of the study.

    Raises:
        TrainingError: the config cannot be trained; the lines are those of the training.
    """
    pace, start = pace_elsewhere(config, environment)
    steps = f"{pace.num_steps} steps of the base" if pace.num_steps > 1 else "one step of the base"
    return RunTime(start + pace.training_seconds, f"by {steps}, as if all variants took as long")
