"""Studies of stand-in runs, for tests of who starts them; also a script: `python small_study.py FOLDER NUMBER JOBS`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from impresa.ablation.launchers import LocalLauncher
from impresa.ablation.plan import PlannedRun
from impresa.ablation.runner import Running, StudyRunner, standing_of
from impresa.ablation.study import Variant
from impresa.config.experiment import ExperimentConfig
from impresa.errors import CheckpointError
from impresa.run_dir.layout import GOLDEN, PREPROCESSING, WEIGHTS
from impresa.run_dir.lock import refuse_running
from impresa.run_dir.manifest import write_manifest
from stand_in import COMMAND


class Silent:
    """A view that keeps what it is told."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []

    def started(self, run: PlannedRun) -> None:
        self.seen.append(("started", run.folder))

    def finished(self, run: PlannedRun, seconds: float | None) -> None:
        self.seen.append(("finished", run.folder))

    def failed(self, run: PlannedRun, reason: str) -> None:
        self.seen.append(("failed", run.folder))

    def waiting(self, reason: str) -> None:
        if ("waiting", reason) not in self.seen:
            self.seen.append(("waiting", reason))

    def tick(self, running: Sequence[Running], num_waiting: int) -> None:
        return


def is_trained(run_dir: Path) -> bool:
    """True while a training holds the run."""
    try:
        refuse_running(run_dir)
    except CheckpointError:
        return True
    return False


def planned_runs(number: int) -> list[PlannedRun]:
    """The base and one variant with seeds in turn."""
    variants = (Variant("base"), Variant("losses.type=siglip", ("losses.type=siglip",)))
    return [
        PlannedRun(
            variant,
            seed,
            ExperimentConfig(),
            ("shapes", *variant.overrides, f"seed={seed}"),
            f"runs/{'siglip' if variant.overrides else 'base'}{seed}",
        )
        for seed in range(-(-number // 2))
        for variant in variants
    ][:number]


def finished_stand_in(folder: Path) -> Path:
    """A folder that counts as a finished run."""
    folder.mkdir()
    for name in (WEIGHTS, PREPROCESSING, GOLDEN):
        (folder / name).write_text(name)
    (folder / "environment.json").write_text(json.dumps({"finished": "2025-01-01T00:00:00+00:00"}))
    write_manifest(folder)
    return folder


def trained(study_dir: Path, runs: list[PlannedRun], *, num_jobs: int = 2) -> tuple[StudyRunner, Silent]:
    """Train what is left of a study of stand-ins."""
    standing, view = standing_of(runs, study_dir), Silent()
    launcher = LocalLauncher(study_dir, COMMAND, num_jobs)
    runner = StudyRunner(study_dir, launcher, view, num_jobs=num_jobs, any_done=bool(standing.done))
    runner.train(standing.to_do)
    return runner, view


if __name__ == "__main__":
    trained(Path(sys.argv[1]), planned_runs(int(sys.argv[2])), num_jobs=int(sys.argv[3]))
