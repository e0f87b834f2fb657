"""How long a training run will take, from some steps of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from impresa.config import to_yaml
from impresa.training.pace import main, measure_pace
from impresa.training.timing import MOST_STEPS
from tiny_run import tiny_experiment


def test_the_pace_grows_with_the_run_and_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    short, long = (measure_pace(tiny_experiment(f"trainer.epochs={epochs}")) for epochs in (3, 30_000))
    assert (short.num_steps, long.num_steps) == (8, MOST_STEPS)
    assert 0 < 9 * short.step_seconds < short.training_seconds  # three steps an epoch, and validations
    assert 0 < 90_000 * long.step_seconds < long.training_seconds
    assert 0 < short.measuring_seconds < 600
    assert list(tmp_path.iterdir()) == []


def test_the_script_prints_json_or_the_lines_of_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(tiny_experiment()))
    assert main(str(path)) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["num_steps"] == 8
    path.write_text("optimization:\n  lr: fast\n")
    assert main(str(path)) == 2
    assert "optimization.lr" in json.loads(capsys.readouterr().out.splitlines()[-1])[0]
