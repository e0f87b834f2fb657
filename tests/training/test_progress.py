from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

from impresa.config.experiment import LoggingConfig
from impresa.tasks.alignment.batch import Batch
from impresa.training import progress
from impresa.training.module import TrainingModule
from impresa.training.plan import Plan
from impresa.training.progress import ProgressReport, memory_in_use
from impresa.training.recorder import Speedometer


class Training:
    """Three steps of two batches and a validation, seen by the report."""

    def __init__(self, report: ProgressReport) -> None:
        self.report = report
        self.module = TrainingModule.__new__(TrainingModule)
        torch.nn.Module.__init__(self.module)
        self.module.plan, self.module.step = Plan(3, 12, LoggingConfig()), 0
        metrics = {
            "val_other": torch.tensor(9.0),
            "val_loss": torch.tensor(1.5),
            "val_image_to_text_recall_at_1": torch.tensor(0.25),
        }
        self.trainer: Any = SimpleNamespace(
            is_global_zero=True, world_size=1, sanity_checking=False, callback_metrics=metrics
        )

    def run(self) -> None:
        self.report.on_train_start(self.trainer, self.module)
        batch = [Batch(ids=["x"] * 4), Batch(ids=["x"] * 2)]
        for step in (1, 2, 3):
            self.module.step = step
            self.report.on_train_batch_end(self.trainer, self.module, {"loss": torch.tensor(2.0)}, batch, step)
        self.report.on_validation_start(self.trainer, self.module)
        self.report.on_validation_end(self.trainer, self.module)
        self.report.on_train_end(self.trainer, self.module)


def test_without_a_terminal_it_is_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    training = Training(ProgressReport())
    training.run()
    assert capsys.readouterr() == ("", "step 3/12  val_loss 1.500  image to text R@1 0.250\n")
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    training.run()
    first, *_ = capsys.readouterr().err.splitlines()
    assert first.startswith("step 1/12  loss 2.000  ")
    assert "samples/s" in first
    assert "GiB" in first
    assert first.endswith(" left")


def test_on_a_terminal_it_is_a_bar() -> None:
    report = ProgressReport()
    screen = io.StringIO()
    report.console = Console(file=screen, force_terminal=True, width=120)
    Training(report).run()
    shown = screen.getvalue()
    assert "3/12" in shown
    assert "val_loss 1.500" in shown
    assert report._bar is None


def test_other_processes_are_silent(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    training = Training(ProgressReport())
    training.trainer.is_global_zero = False
    training.run()
    assert capsys.readouterr() == ("", "")


def test_the_sanity_check_is_not_reported(capsys: pytest.CaptureFixture[str]) -> None:
    training = Training(ProgressReport())
    training.trainer.sanity_checking = True
    training.run()
    assert capsys.readouterr() == ("", "")


def test_the_speed_leaves_pauses_out(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 2.0, 100.0, 103.0, 103.0, 104.0, 104.0])
    monkeypatch.setattr("impresa.training.recorder.time.monotonic", lambda: next(clock))
    speed = Speedometer()
    speed.add(30)
    speed.pause()
    speed.resume()
    speed.add(20)
    assert speed.read() == pytest.approx(50 / 5)
    speed.add(7)
    assert speed.read() == pytest.approx(7.0)


def test_memory_is_told_in_gib() -> None:
    assert memory_in_use().endswith(("GiB", "GiB GPU"))
    assert float(memory_in_use().split()[0]) > 0
