from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from impresa.run_dir.weights import read_weights
from impresa.training.checkpoints import read_checkpoint
from impresa.training.parts import build_parts
from impresa.training.run import train
from impresa.training.state import WeightAverage
from tiny_qwen import save_qwen
from tiny_run import tiny_experiment, without_charts
from tiny_vlm import tiny_qwen_vlm


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


def test_an_average_of_16_bit_weights_is_finer_than_they_are() -> None:
    linear = nn.Linear(1, 1, bias=False).bfloat16()
    nn.init.constant_(linear.weight, 1.0)
    average = WeightAverage(linear, 0.999)
    nn.init.constant_(linear.weight, 2.0)
    for step in range(9000, 9003):  # each moves it by a thousandth, less than bfloat16 can tell from one
        average.update(step)
        average.swap()
        average.swap()
    (value,) = average.state_dict().values()
    assert value.item() == pytest.approx(2 - 0.999**3, abs=1e-6)
    assert linear.weight.item() == 2.0
    assert linear.weight.dtype == torch.bfloat16


def test_what_is_frozen_has_no_average() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).requires_grad_(False))
    assert WeightAverage(model, 0.9).state_dict().keys() == {"0.weight", "0.bias"}


def test_the_run_keeps_the_average(tmp_path: Path) -> None:
    run = train(tiny_experiment("optimization.ema_decay=0.6", "trainer.max_steps=3"), tmp_path / "run", command=[])
    last = read_checkpoint(run / "checkpoints" / "last.ckpt")
    kept = load_file(run / "model.safetensors")
    name = "vision_encoder.head.weight"
    assert torch.equal(kept[name], last["average"][name])
    assert not torch.allclose(kept[name], last["model"][name], atol=1e-6)


def test_without_checkpoints_the_average_is_kept_all_the_same(tmp_path: Path) -> None:
    averaging = tiny_experiment("trainer.max_steps=3", "optimization.ema_decay=0.15", "trainer.checkpoint.save_top_k=0")
    run = train(averaging, tmp_path / "averaged", command=[])
    every = ("trainer.logging.eval_interval=1", "trainer.logging.save_interval=1", "trainer.checkpoint.save_top_k=3")
    plain = train(tiny_experiment("trainer.max_steps=3", *every), tmp_path / "plain", command=[])
    name = "text_encoder.head.weight"
    expected = build_parts(averaging, None).model.state_dict()[name]
    for step in (1, 2, 3):
        (path,) = plain.glob(f"checkpoints/*{step}.ckpt")
        keep = min(0.15, step / (step + 9))
        expected = keep * expected + (1 - keep) * read_checkpoint(path)["model"][name]
    torch.testing.assert_close(load_file(run / "model.safetensors")[name], expected, rtol=1e-6, atol=1e-7)


def test_the_average_of_a_tied_head_is_kept(tmp_path: Path) -> None:
    qwen = save_qwen(tmp_path / "qwen", tied=True)
    config = tiny_qwen_vlm(qwen, "optimization.ema_decay=0.6", "trainer.epochs=1")
    run = train(config, tmp_path / "run", command=[])
    last = read_checkpoint(run / "checkpoints" / "last.ckpt")
    kept = read_weights(run / "model.safetensors")
    assert "decoder.model.lm_head.weight" in kept
    for name in ("model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight"):
        assert torch.equal(kept[f"decoder.model.{name}"], last["average"][f"decoder.model.{name}"]), name
    table = "decoder.model.model.embed_tokens.weight"
    assert torch.equal(kept["decoder.model.lm_head.weight"], kept[table])
    assert not torch.equal(kept[table], last["model"][table])
