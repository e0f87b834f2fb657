from __future__ import annotations

import io
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from impresa.training import logs
from impresa.training.logs import ProgressReport, Speedometer, memory_in_use


def run(report: ProgressReport) -> None:
    """Three steps of six samples and a validation, seen by the report."""
    report.start(0)
    for step in (1, 2, 3):
        report.train(step, 6, {"loss": torch.tensor(2.0)})
    with report.speed.paused():
        metrics = {"val_other": 9.0, "val_loss": 1.5, "val_image_to_text_recall_at_1": 0.25}
    report.validation(3, metrics)
    report.stop()


def test_without_a_terminal_it_is_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    report = ProgressReport(12)
    run(report)
    assert capsys.readouterr() == ("", "step 3/12  val_loss 1.500  image to text R@1 0.250\n")
    monkeypatch.setattr(logs, "SECONDS_BETWEEN_LINES", 0.0)
    run(report)
    first, *_ = capsys.readouterr().err.splitlines()
    assert first.startswith("step 1/12  loss 2.000  ")
    assert "samples/s" in first
    assert "GiB" in first
    assert first.endswith(" left")


def test_on_a_terminal_it_is_a_bar() -> None:
    report = ProgressReport(12)
    screen = io.StringIO()
    report.console = Console(file=screen, force_terminal=True, width=120)
    run(report)
    shown = screen.getvalue()
    assert "3/12" in shown
    assert "val_loss 1.500" in shown
    assert report._bar is None


def test_other_processes_are_silent(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "SECONDS_BETWEEN_LINES", 0.0)
    run(ProgressReport(12, shown=False))
    assert capsys.readouterr() == ("", "")


def test_the_speed_leaves_pauses_out(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 2.0, 100.0, 103.0, 103.0, 104.0, 104.0])
    monkeypatch.setattr(logs, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    speed = Speedometer()
    speed.add(30, 300)
    with speed.paused():
        pass
    speed.add(20, 100)
    assert speed.read() == pytest.approx((50 / 5, 400 / 5))
    speed.add(7)
    assert speed.read() == pytest.approx((7.0, 0.0))


def test_memory_is_told_in_gib() -> None:
    assert memory_in_use().endswith(("GiB", "GiB GPU"))
    assert float(memory_in_use().split()[0]) > 0


@pytest.mark.parametrize(
    ("total", "step_seconds", "told"),
    [
        (4096, 3.0, ["this run will take some 3.41 h here, by its first steps (3 s each, 4,096 in all)"]),
        (30_000, 0.25, ["this run will take some 2.08 h here, by its first steps (0.25 s each, 30,000 in all)"]),
        (500, 3.0, []),
    ],
)
def test_a_long_run_is_announced_once_by_its_first_steps(
    total: int,
    step_seconds: float,
    told: list[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = [0.0]
    monkeypatch.setattr(logs, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    report = ProgressReport(total)
    report.start(0)
    for step in range(1, 60):
        clock[0] += 30.0 if step == 1 else step_seconds
        report.train(step, 1, {"loss": torch.tensor(1.0)})
        if step == 4:
            assert caplog.messages == []
    assert [line.partition(";")[0] for line in caplog.messages] == told
