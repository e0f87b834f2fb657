from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from impresa.training.averaging import WeightAverage
from impresa.training.checkpoints import read_checkpoint
from impresa.training.run import train
from tiny_run import tiny_experiment, without_charts


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    without_charts(monkeypatch)


def test_the_average_follows_its_formula() -> None:
    linear = nn.Linear(1, 1, bias=False).double()
    average = WeightAverage(linear, 0.5)
    expected = linear.weight.item()
    for step, value in enumerate([1.0, -2.0, 4.0, 0.5, 3.0], start=1):
        nn.init.constant_(linear.weight, value)
        average.update(step)
        keep = min(0.5, step / (step + 9))
        expected = keep * expected + (1 - keep) * value
    average.swap()
    assert linear.weight.item() == pytest.approx(expected, abs=1e-12)
    average.swap()
    assert linear.weight.item() == 3.0


def test_what_is_frozen_has_no_average() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).requires_grad_(False))
    assert WeightAverage(model, 0.9).state_dict().keys() == {"0.weight", "0.bias"}


def test_the_run_keeps_the_average(tmp_path: Path) -> None:
    run = train(tiny_experiment("optimization.ema_decay=0.6", "trainer.max_steps=3"), tmp_path / "run", command=[])
    last = read_checkpoint(run / "checkpoints" / "last.ckpt")
    kept = load_file(run / "model.safetensors")
    name = "vision_encoder.head.weight"
    assert torch.equal(kept[name], last["average"][f"model.{name}"])
    assert not torch.allclose(kept[name], last["state_dict"][f"model.{name}"], atol=1e-6)


def test_without_checkpoints_the_average_is_kept_all_the_same(tmp_path: Path) -> None:
    settings = ("trainer.max_steps=3", "trainer.checkpoint.save_top_k=0")
    plain = train(tiny_experiment(*settings), tmp_path / "plain", command=[])
    averaged = train(tiny_experiment(*settings, "optimization.ema_decay=0.9"), tmp_path / "averaged", command=[])
    ours, theirs = (load_file(run / "model.safetensors")["text_encoder.head.weight"] for run in (averaged, plain))
    assert not torch.allclose(ours, theirs, atol=1e-6)
