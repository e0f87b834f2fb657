"""How long a training run will take, from some steps of it; nothing is written.

python -m impresa.training.pace CONFIG

CONFIG is a file as in a run directory. Prints a `Pace` as a line of JSON, or with exit code 2 the lines of an error.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

from impresa.config import ExperimentConfig, read_config
from impresa.errors import USER_ERROR, ImpresaError
from impresa.training.run import trial
from impresa.training.timing import Pace, measure


def measure_pace(config: ExperimentConfig) -> Pace:
    """The pace of an experiment in this process.

    Raises:
        ImpresaError: as `impresa.training.run.train` does.
    """
    with trial(config) as (_, training, _):
        return measure(training)[0]


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
