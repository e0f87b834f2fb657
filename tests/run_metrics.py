"""What a run wrote to its metrics.csv, and a training run that is interrupted at a step."""

from __future__ import annotations

import csv
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from impresa.training.logs import PACE, Recorder


def rows(run_dir: Path) -> list[dict[str, str]]:
    """Each row as it is written, without speed and memory, which no two runs share."""
    with (run_dir / "metrics.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if k not in PACE} for row in csv.DictReader(file)]


def numbers(run_dir: Path, *names: str) -> list[dict[str, float]]:
    """The named values of each row that has them."""
    return [{name: float(row[name]) for name in names if row[name]} for row in rows(run_dir)]


def interrupt_after(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while the given step is made."""
    record = Recorder.train

    def press(self: Recorder, at: int, *rest: Any) -> None:
        if at == step:
            os.kill(os.getpid(), signal.SIGINT)
        record(self, at, *rest)

    monkeypatch.setattr(Recorder, "train", press)
