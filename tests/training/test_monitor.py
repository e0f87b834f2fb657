"""Overfitting is said once, and ends a run where that is wanted."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import pytest
import torch

import impresa
from impresa.cli.main import main
from impresa.config.experiment import TrainerConfig
from impresa.config.types import CheckpointConfig
from impresa.errors import ConfigError
from impresa.run_dir.environment import is_finished
from impresa.training import loop
from impresa.training.monitor import Monitor
from impresa.training.run import train
from run_metrics import interrupt_after, rows
from tiny_run import dry_run_of, tiny_experiment, without_charts

COMMAND = ["impresa", "train", "shapes"]
BEST_FIRST = (1.0, 2.0, 3.0)
"""Validation losses of the three epochs of three steps each."""
PATIENT = "trainer.early_stopping_patience=1"


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    without_charts(monkeypatch)


def validations(losses: tuple[float, ...], patch: pytest.MonkeyPatch) -> None:
    """Let the coming validations find these losses, and later ones the last of them."""
    found: Iterator[float] = chain(losses, repeat(losses[-1]))
    patch.setattr(loop, "validate", lambda *_, **__: {"val_loss": next(found)})


def validated(run_dir: Path) -> list[int]:
    return [int(row["step"]) for row in rows(run_dir) if row["val_loss"]]


def said(caplog: pytest.LogCaptureFixture, words: str) -> list[str]:
    return [record.message for record in caplog.records if words in record.message]


def monitor(total: int, **settings: Any) -> Monitor:
    return Monitor(TrainerConfig(**settings), total)


def test_it_is_said_once_in_a_run_and_not_again_after_resuming(caplog: pytest.LogCaptureFixture) -> None:
    first, second = monitor(90), monitor(90)
    for step in range(10, 60, 10):
        first.after_validation(step, {"val_loss": float(step)})
    (line,) = said(caplog, "worse since")
    assert line.startswith("step 50: val_loss was best at step 10 of 90 and has been worse since")
    second.resume(first.points())
    second.after_validation(60, {"val_loss": 1.0})  # a new best, and worse for long once more
    second.after_validation(120, {"val_loss": 2.0})
    assert len(said(caplog, "worse since")) == 1


def test_patience_counts_validations_that_were_no_better(caplog: pytest.LogCaptureFixture) -> None:
    settings = {"early_stopping_patience": 2, "checkpoint": CheckpointConfig(monitor="val_recall", mode="max")}
    watched = monitor(900, **settings)
    exhausted = []
    for step, value in enumerate((0.1, 0.3, 0.2, 0.4, 0.4, 0.1), start=1):
        watched.after_validation(step, {"val_recall": value})
        exhausted.append(watched.is_exhausted)
    assert exhausted == [False] * 5 + [True]
    resumed = monitor(900, **settings)
    resumed.resume(watched.points()[:-1])
    assert not resumed.is_exhausted
    resumed.after_validation(6, {"val_recall": 0.4})
    assert resumed.is_exhausted


def test_a_run_stops_early_is_whole_and_goes_on_when_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run_dir = tmp_path / "run"
    validations(BEST_FIRST, monkeypatch)
    train(tiny_experiment(PATIENT), run_dir, command=COMMAND)
    assert validated(run_dir) == [3, 6]
    (line,) = said(caplog, "stopped early")
    assert line.startswith("stopped early after step 6 (trainer.early_stopping_patience is 1): val_loss was best at")
    assert is_finished(run_dir)
    best, last = (torch.load(run_dir / "checkpoints" / f"{n}.ckpt", weights_only=True) for n in ("000-0000003", "last"))
    assert last["step"] == 6
    weights = impresa.load(run_dir, "cpu").model.state_dict()
    assert all(torch.equal(weights[name], best["model"][name]) for name in weights)
    train(tiny_experiment(PATIENT), run_dir, command=COMMAND, resume=True)
    assert "this run has finished" in caplog.text
    assert validated(run_dir) == [3, 6]
    train(tiny_experiment("trainer.early_stopping_patience=9"), run_dir, command=COMMAND, resume=True)
    assert validated(run_dir) == [3, 6, 9]
    assert is_finished(run_dir)


def test_patience_survives_an_interruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_experiment("trainer.early_stopping_patience=2")
    validations(BEST_FIRST, monkeypatch)
    with monkeypatch.context() as patch:
        interrupt_after(7, patch)
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "run", command=COMMAND)
    validations((2.5,), monkeypatch)
    train(tiny_experiment("trainer.early_stopping_patience=2"), tmp_path / "run", command=COMMAND, resume=True)
    last = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["monitored"] == [(3, 1.0), (6, 2.0), (9, 2.5)]


def test_report_and_terminal_say_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from impresa.reports.html import render_report

    validations(BEST_FIRST, monkeypatch)
    monkeypatch.setattr("impresa.cli.train._config_to_train", lambda args: "shapes")
    monkeypatch.setattr("impresa.config.compose.load_experiment", lambda *_: tiny_experiment())
    run_dir = tmp_path / "run"
    assert main(["train", "shapes", "--output-dir", str(run_dir)]) == 0
    line = "val_loss: best at step 3 of 9, and worse since; the model is that of step 3"
    captured = capsys.readouterr()
    assert captured.out.splitlines().count(line) == 1
    assert captured.err.count("val_loss was best at step 3 of 9 and has been worse since") == 1
    assert render_report(run_dir).count(line) == 1


@pytest.mark.parametrize("work", ["a dry run", "a training run"])
def test_a_monitor_that_is_no_metric_is_refused_before_training(tmp_path: Path, work: str) -> None:
    config = tiny_experiment("trainer.checkpoint.monitor=val_bleu", "trainer.checkpoint.save_top_k=0")
    with pytest.raises(ConfigError, match=r"'val_bleu'; there are .*val_loss, .*val_recall, val_text_to_image"):
        dry_run_of(config) if work == "a dry run" else train(config, tmp_path / "run", command=COMMAND)


def test_a_run_can_be_judged_by_its_recall(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        config = tiny_experiment("trainer.checkpoint.monitor=val_recall", "trainer.checkpoint.mode=max")
        run_dir = train(config, tmp_path / "run", command=COMMAND)
    found = [row for row in rows(run_dir) if row["val_loss"]]
    for row in found:
        both = [float(row[f"val_{way}_recall_at_1"]) for way in ("image_to_text", "text_to_image")]
        assert float(row["val_recall"]) == pytest.approx(sum(both) / 2)
    best = max(found, key=lambda row: float(row["val_recall"]))
    scores = torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)["scores"]
    assert max(scores.values()) == pytest.approx(float(best["val_recall"]))
