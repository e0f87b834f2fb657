"""How a study gets on: plain lines when piped, one table on a terminal."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from impresa.ablation.progress import Progress, last_metrics
from impresa.ablation.runner import Running, Standing
from small_study import planned_runs

RUNS = planned_runs(4)
JOB: Any = None


def progress(study_dir: Path, *, terminal: bool) -> tuple[Progress, io.StringIO]:
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=100, height=20, color_system=None)
    return Progress(console, study_dir, Standing(done=RUNS[:1], to_do=RUNS[1:], damaged={}), num_jobs=1), text


def test_piped_it_is_a_line_for_each_start_and_end(tmp_path: Path) -> None:
    shown, text = progress(tmp_path, terminal=False)
    with shown:
        shown.estimate = 10
        shown.started(RUNS[1])
        shown.finished(RUNS[1], 60.0)
        shown.started(RUNS[2])
        shown.tick([], 1)
        shown.failed(RUNS[2], "lr: is \x1b[31m wrong")
        shown.waiting("x is being trained; waiting for it")
        shown.waiting("x is being trained; waiting for it")
        shown.finished(RUNS[3], None)
    assert text.getvalue().splitlines() == [
        "[1/4] losses.type=siglip, seed 0: started",
        "[2/4] losses.type=siglip, seed 0: finished in 0:01:00; about 0:02:00 left",
        "[2/4] base, seed 1: started",
        r"[3/4] base, seed 1: failed: lr: is \u001b[31m wrong; about 0:01:00 left",
        "[3/4] x is being trained; waiting for it",
        "[4/4] losses.type=siglip, seed 1: finished",
    ]


def test_on_a_terminal_it_is_one_table_with_step_and_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("impresa.ablation.progress.time", SimpleNamespace(monotonic=lambda: 1000.0))
    shown, text = progress(tmp_path, terminal=True)
    run_dir = tmp_path / RUNS[1].folder
    run_dir.mkdir(parents=True)
    (run_dir / "metrics.csv").write_text(
        "step,epoch,train_loss,lr,val_loss\n10,0,2.5,0.1,\n20,0,1.25,0.1,\n20,0,,,2.0\n3"
    )
    with shown:
        shown.estimate = 3600
        shown.started(RUNS[1])
        shown.tick([Running(RUNS[1], JOB, 0, 935.0)], 2)
    assert "4 runs: 1 done, 0 failed, 1 running, 2 waiting; about 3:00:00 left" in text.getvalue()
    row = next(line for line in text.getvalue().splitlines() if line.startswith("losses.type=siglip, seed 0"))
    assert row.split()[-3:] == ["20", "1.250", "0:01:05"]
    assert "started" not in text.getvalue()


def test_the_end_of_long_or_odd_metrics_is_read(tmp_path: Path) -> None:
    assert last_metrics(tmp_path) == ("", "")
    lines = [f"{step},0,{step / 1000},,\n" for step in range(20_000)]
    (tmp_path / "metrics.csv").write_text("step,epoch,train_loss,lr,val_loss\n" + "".join(lines))
    assert last_metrics(tmp_path) == ("19999", "19.999")
    (tmp_path / "metrics.csv").write_text("step,train_loss\n1,odd\n")
    assert last_metrics(tmp_path) == ("", "")
    (tmp_path / "metrics.csv").write_bytes(bytes(range(256)))
    assert last_metrics(tmp_path) == ("", "")
