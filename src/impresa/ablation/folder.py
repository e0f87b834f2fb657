"""The folder of a study: what may be used as one, its record, and where its runs and their logs lie.

study.json      what is compared, as it was last started, and the command
runs/HASH       a run directory for each config and seed
logs/HASH.log   all that the run's training printed
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from impresa.ablation.plan import PlannedRun
from impresa.ablation.study import Study
from impresa.errors import CheckpointError
from impresa.files import write_atomic
from impresa.run_dir.environment import is_finished, now
from impresa.run_dir.layout import CONFIG, LOCK, MANIFEST
from impresa.run_dir.manifest import verify

STUDY = "study.json"
LOGS = "logs"


def check_study_dir(study_dir: Path) -> None:
    """Refuse what is neither a study nor free for one; nothing is written.

    Raises:
        CheckpointError: it is a file, a run, or holds something else.
    """
    fix = "choose another --output-dir"
    if study_dir.exists() and not study_dir.is_dir():
        raise CheckpointError(f"{study_dir}: is no folder; {fix}")
    if not study_dir.is_dir() or (study_dir / STUDY).is_file():
        return
    if (study_dir / CONFIG).is_file():
        raise CheckpointError(f"{study_dir}: holds a run and no study; {fix}")
    if any(path.name != LOCK and not path.name.endswith(".tmp") for path in study_dir.iterdir()):
        raise CheckpointError(f"{study_dir}: is not empty and no study; {fix}")


def write_record(study_dir: Path, study: Study, runs: Sequence[PlannedRun], command: Sequence[str]) -> None:
    """Write down what is compared, the runs that it needs, and the command."""
    record = {
        "format": 1,
        "started": now(),
        "command": list(command),
        "study": asdict(study),
        "runs": [{"folder": run.folder, "variant": run.variant.name, "seed": run.seed} for run in runs],
    }
    write_atomic(study_dir / STUDY, json.dumps(record, indent=2) + "\n")


def log_of(study_dir: Path, run: PlannedRun) -> Path:
    """The file that takes what a run prints."""
    return study_dir / LOGS / f"{Path(run.folder).name}.log"


def is_done(run_dir: Path) -> bool:
    """True for a run that has been trained, evaluated and reported, and is as it was then.

    Raises:
        CheckpointError: it has finished, but its files are not what the training wrote.
    """
    if not (run_dir / MANIFEST).is_file() or not is_finished(run_dir):
        return False
    verify(run_dir)
    return True
