"""Costs of a training run, in `cost.json`: size, work, speed, memory and time."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from impresa.files import write_atomic
from impresa.json_files import Count, read_json
from impresa.run_dir.layout import COST

Amount = Annotated[float, Field(ge=0, le=1e30)]
Seconds = Annotated[float, Field(ge=0, le=1e10)]
"""Three centuries at most."""
_MINUTE, _HOUR = 60, 3600


@dataclass(frozen=True)
class Cost:
    """Measured while the run was trained; over all its parts where it was resumed."""

    parameters: Count
    """Of the whole model, frozen ones too."""
    trainable_parameters: Count
    flops_per_sample: Amount | None
    """Floating-point operations of forward and backward pass of one training sample, by the formulas of
    `torch.utils.flop_counter`; None where it cannot."""
    samples_per_second: Amount
    """Training samples over the time of the steps, without validations."""
    peak_memory_bytes: Count
    """Of the GPU, else resident memory of the process."""
    training_seconds: Seconds
    """From the first step to the last, validations and checkpoints included."""


def read_cost(run_dir: Path) -> Cost | None:
    """The costs of a run; None for a run that has not finished, or is older than this file.

    Raises:
        CheckpointError: the file was not written by this program.
    """
    path = run_dir / COST
    return read_json(path, Cost, fix="remove it") if path.is_file() else None


def write_cost(run_dir: Path, cost: Cost) -> None:
    write_atomic(run_dir / COST, json.dumps(asdict(cost), indent=2) + "\n")


def duration(seconds: float) -> str:
    """A length of time for people: `41.5 s`, `12.3 min`, `3.25 h`."""
    if seconds < 2 * _MINUTE:
        return f"{seconds:.3g} s"
    return f"{seconds / _MINUTE:.3g} min" if seconds < 2 * _HOUR else f"{seconds / _HOUR:.3g} h"


def data_size(num_bytes: float) -> str:
    """A number of bytes for people: `812 B`, `41.5 MiB`, `3.25 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.4g} {unit}" if unit == "B" else f"{num_bytes:.3g} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.3g} TiB"
