"""Training on shards: killed and resumed it equals a straight run."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from impresa.config import ExperimentConfig
from impresa.training.logs import Recorder
from impresa.training.run import train
from run_metrics import rows
from shards_on_disk import numbered, tar, write_shards
from tiny_run import tiny_experiment

COMMAND = ["impresa", "train", "shapes"]


def experiment(folder: Path, *overrides: str) -> ExperimentConfig:
    paths = (f"dataset.train_path='{folder}/train/{{0000..0003}}.tar'", f"dataset.val_path={folder}/val")
    return tiny_experiment(*paths, "trainer.logging.save_interval=2", "trainer.epochs=2", *overrides)


def train_and_die(config: ExperimentConfig, run_dir: Path, step: int) -> None:
    record = Recorder.train

    def die(self: Recorder, at: int, *rest: Any) -> None:
        if at == step:
            os.kill(os.getpid(), signal.SIGKILL)
        record(self, at, *rest)

    Recorder.train = die  # type: ignore[method-assign, assignment]
    train(config, run_dir, command=COMMAND)


def test_a_run_that_is_killed_and_resumed_sees_the_same_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("impresa.training.finish.write_report", lambda run_dir: run_dir / "report.html")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_shards(tmp_path / "train", num_shards=4)
    write_shards(tmp_path / "val", num_shards=2)
    (tmp_path / "val" / "cut.tar").write_bytes(tar(numbered(90, 2))[:4000])
    config = experiment(tmp_path, "dataset.max_bad_fraction=0.2")
    child = multiprocessing.get_context("fork").Process(target=train_and_die, args=(config, tmp_path / "run", 3))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    last = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["step"] == 2
    train(config, tmp_path / "run", command=COMMAND, resume=True)
    train(config, tmp_path / "straight", command=COMMAND)
    assert rows(tmp_path / "run") == rows(tmp_path / "straight")
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("run", "straight")]
    assert weights[0] == weights[1]
    bad = (tmp_path / "run" / "bad_samples.jsonl").read_text()
    assert '"cut.tar:end"' in bad
