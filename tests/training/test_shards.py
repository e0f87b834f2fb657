"""Training on shards, and on what `save_to_disk` wrote: killed and resumed it equals a straight run."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from impresa.config import ExperimentConfig
from impresa.training.logs import Recorder
from impresa.training.run import train
from run_metrics import rows
from saved_on_disk import arrow, save_splits
from saved_on_disk import numbered as saved_rows
from shards_on_disk import numbered, tar, write_shards
from tiny_run import tiny_experiment

COMMAND = ["impresa", "train", "shapes"]


def shards(folder: Path) -> ExperimentConfig:
    write_shards(folder / "train", num_shards=4)
    write_shards(folder / "val", num_shards=2)
    (folder / "val" / "cut.tar").write_bytes(tar(numbered(90, 2))[:4000])
    return experiment(f"'{folder}/train/{{0000..0003}}.tar'", f"{folder}/val")


def saved(folder: Path) -> ExperimentConfig:
    whole = arrow(saved_rows(20, 11))
    save_splits(folder / "saved", train=[arrow(saved_rows(0, 20))], val=[whole[: len(whole) // 2], whole])
    return experiment(f"{folder}/saved", f"{folder}/saved/val", "dataset.num_workers=1")


def at_an_address(folder: Path) -> ExperimentConfig:
    """Parquet files of which the cache keeps two, in the memory that a forked process inherits."""
    memory = fsspec.filesystem("memory")
    for number in range(5):
        pq.write_table(pa.Table.from_pylist(saved_rows(6 * number, 6)), folder / "one.parquet", row_group_size=2)
        memory.pipe(
            f"/kept/{'val' if number == 4 else 'train'}-{number}.parquet", (folder / "one.parquet").read_bytes()
        )
    gib = 2.5 * (folder / "one.parquet").stat().st_size / (1 << 30)
    return experiment("memory://kept/train-*.parquet", "memory://kept/val-4.parquet", f"dataset.shard_cache_gib={gib}")


def experiment(train_path: str, val_path: str, *overrides: str) -> ExperimentConfig:
    paths = (f"dataset.train_path={train_path}", f"dataset.val_path={val_path}", "dataset.max_bad_fraction=0.2")
    return tiny_experiment(*paths, "trainer.logging.save_interval=2", "trainer.epochs=2", *overrides)


def train_and_die(config: ExperimentConfig, run_dir: Path, step: int) -> None:
    record = Recorder.train

    def die(self: Recorder, at: int, *rest: Any) -> None:
        if at == step:
            os.kill(os.getpid(), signal.SIGKILL)
        record(self, at, *rest)

    Recorder.train = die  # type: ignore[method-assign, assignment]
    train(config, run_dir, command=COMMAND)


@pytest.mark.parametrize(
    ("write", "cut"),
    [(shards, "cut.tar:end"), (saved, "data-00000-of-00002.arrow:end"), (at_an_address, None)],
)
def test_a_run_that_is_killed_and_resumed_sees_the_same_samples(
    write: Callable[[Path], ExperimentConfig], cut: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("impresa.training.finish.write_report", lambda run_dir: run_dir / "report.html")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    config = write(tmp_path)
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
    if cut is not None:
        assert f'"{cut}"' in (tmp_path / "run" / "bad_samples.jsonl").read_text()
