"""How long a training run will take, from some steps of it; nothing is written.

python -m impresa.training.pace CONFIG

CONFIG is a file as in a run directory. Prints a `Pace` as a line of JSON, or with exit code 2 the lines of an error.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from impresa.config import ExperimentConfig, read_config, to_yaml
from impresa.errors import USER_ERROR, ImpresaError, TrainingError
from impresa.files import write_atomic
from impresa.training.run import trial
from impresa.training.timing import Pace, measure


def measure_pace(config: ExperimentConfig) -> Pace:
    """The pace of an experiment in this process.

    Raises:
        ImpresaError: as `impresa.training.run.train` does.
    """
    with trial(config) as (_, training, _):
        return measure(training)[0]


def pace_elsewhere(config: ExperimentConfig, environment: Mapping[str, str]) -> tuple[Pace, float]:
    """The pace of an experiment in a process of its own, and the seconds that a run takes beside its steps: to start,
    and to open its data.

    Args:
        config: the experiment.
        environment: variables of the process.

    Raises:
        TrainingError: the experiment cannot be trained; the lines are those of the training.
    """
    with tempfile.TemporaryDirectory(prefix="impresa-") as folder:
        settings = write_atomic(Path(folder) / "config.yaml", to_yaml(config))
        begun = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "impresa.training.pace", str(settings)],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            env=dict(environment),
        )
        seconds = time.monotonic() - begun
    said = done.stdout.splitlines()[-1:]
    if done.returncode == USER_ERROR and said:
        raise TrainingError(*json.loads(said[0]))
    if done.returncode or not said:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise TrainingError(f"{config.name} cannot be trained ({reason}); `impresa train` tells more")
    pace = Pace(**json.loads(said[0]))
    return pace, seconds - pace.measuring_seconds


def main(path: str) -> int:
    """Measure the config in a file; returns the exit code."""
    try:
        print(json.dumps(asdict(measure_pace(read_config(Path(path))))))  # noqa: T201
    except ImpresaError as error:
        print(json.dumps(error.lines))  # noqa: T201
        return USER_ERROR
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
