"""Samples of several images and tiles: a step over several batches or processes is that over one large batch."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from impresa.config import ExperimentConfig
from impresa.training.run import train
from tiny_run import without_charts
from tiny_vlm import picture, tiny_vlm
from two_processes import in_two_processes


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    without_charts(monkeypatch)


def config_of(folder: Path, *overrides: str) -> ExperimentConfig:
    data = (f"dataset.train_path={folder / 'data'}", f"dataset.val_path={folder / 'data'}")
    several = ("dataset.max_images=2", "decoder.tiles=4", "fusion.strategy=gated", "fusion.num_queries=6")
    plain = ("optimization.optimizer=sgd", "optimization.lr=0.1", "trainer.epochs=2", "optimization.precision=32-true")
    return tiny_vlm(*data, *several, *plain, *overrides)


def write_data(folder: Path) -> None:
    """Twelve rows, of which few have more than one small image, so that some batches have none."""
    folder.mkdir()
    for number in range(12):
        picture(number, 64 if number == 5 else 16).save(folder / f"{number}.png")
    rows = [{"image": f"{n}.png", "question": "how many?", "answer": str(n % 3)} for n in range(12)]
    rows[3]["image"] = ["3.png", "5.png"]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def train_together(rank: int, folder: Path) -> None:
    together = ("dataset.batch_size=3", "trainer.devices=2", "trainer.strategy=ddp", "dataset.eval_batch_size=2")
    train(config_of(folder, *together, "trainer.accumulate_grad_batches=2"), folder / "run", command=[])


def test_two_processes_are_one(tmp_path: Path) -> None:
    write_data(tmp_path / "data")
    in_two_processes(train_together, tmp_path, tmp_path, start="fork")
    alone = train(config_of(tmp_path, "dataset.batch_size=12"), tmp_path / "alone", command=[])
    ours, theirs = (load_file(run / "model.safetensors") for run in (tmp_path / "run", alone))
    assert ours.keys() == theirs.keys()
    assert {"square_marks.images", "square_marks.rows", "square_marks.columns"} <= ours.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], atol=1e-5, rtol=1e-4, msg=name)


def test_batches_that_are_added_up_are_one_large_batch(tmp_path: Path) -> None:
    write_data(tmp_path / "data")
    added = ("dataset.batch_size=1", "trainer.accumulate_grad_batches=5")
    runs = [
        train(config_of(tmp_path, *batch), tmp_path / name, command=[])
        for name, batch in (("added", added), ("large", ("dataset.batch_size=5",)))
    ]
    ours, theirs = (load_file(run / "model.safetensors") for run in runs)
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], atol=1e-5, rtol=1e-4, msg=name)
