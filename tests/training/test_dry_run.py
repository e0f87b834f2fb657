"""The findings of a dry run, held against what a run then has: weights, memory, disk, work, speed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from impresa.cli.main import main
from impresa.errors import ConfigError
from impresa.run_dir.cost import data_size
from impresa.training import peaks
from impresa.training.dry_run import dry_run, lines
from impresa.training.memory import ActivationMeter
from impresa.training.peaks import TOLD, peak_flops, peak_of
from impresa.training.run import train
from tiny_run import TINY, tiny_experiment, without_charts

CPU = torch.device("cpu")


def test_disk_and_weights_are_those_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_charts(monkeypatch)
    config = tiny_experiment("trainer.max_steps=2", "trainer.logging.eval_interval=1", "optimization.ema_decay=0.9")
    found, run = dry_run(config), train(config, tmp_path / "run", command=["impresa", "train"])
    files = sorted((run / "checkpoints").iterdir())
    assert len(files) <= found.disk.num_checkpoints == 3
    assert found.disk.checkpoint == pytest.approx(files[0].stat().st_size, rel=0.25)  # names and records beside tensors
    assert found.disk.model == pytest.approx((run / "model.safetensors").stat().st_size, rel=0.2)
    assert sum(part.parameters for part in found.parts.values()) == found.model.parameters
    # The logit scale is one of the trained ones; memory's state is a buffer.
    assert found.memory.gradients == 4 * found.model.trainable
    assert found.memory.average == 4 * found.model.trainable
    assert found.memory.optimizer == pytest.approx(2 * found.memory.gradients, rel=0.05)
    assert found.memory.weights >= 4 * found.model.parameters


def test_frozen_parts_have_no_gradients_and_are_told() -> None:
    found = dry_run(tiny_experiment("text_encoder.freeze=true", "trainer.max_steps=2"))
    text = found.parts["text_encoder"]
    assert 0 < text.frozen < text.parameters == text.frozen + text.trainable
    assert found.memory.gradients == 4 * found.model.trainable < found.memory.weights
    assert f"{text.frozen:,} of them frozen" in "\n".join(lines(found))


def test_chunks_and_checkpoints_need_less_memory_and_more_work_of_the_same_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOLD, "1e-6")
    sizes = ("dataset.batch_size=16", "vision_encoder.depth=4", "vision_encoder.drop_rate=0", "trainer.max_steps=1")
    plain, chunked = (dry_run(tiny_experiment(*sizes, *extra)) for extra in ((), ("optimization.chunk_size=2",)))
    assert plain.memory.activations is not None
    assert chunked.memory.activations is not None
    assert chunked.memory.activations < 0.6 * plain.memory.activations
    assert 1.2 < chunked.speed.flops_per_sample / plain.speed.flops_per_sample < 1.4
    useful = [found.speed.mfu / found.speed.samples_per_second for found in (plain, chunked) if found.speed.mfu]
    assert useful[0] == pytest.approx(useful[1], rel=0.01)


def test_activations_are_what_the_graph_holds_and_no_gradient() -> None:
    class State:
        model = nn.Sequential(nn.Linear(64, 256, bias=False), nn.ReLU(), nn.Linear(256, 1, bias=False))
        optimizer = torch.optim.AdamW(model.parameters())

    inputs = torch.randn(1000, 64)
    with ActivationMeter(State) as meter:  # type: ignore[arg-type]
        State.model(inputs).sum().backward()
        State.optimizer.step()
    hidden = 1000 * 256 * 4
    # Of the three hidden layers' worth (products, ReLU, its gradient) two or three are there at once.
    assert 2 * hidden <= meter.most <= 3.2 * hidden


def test_devices_that_are_not_here_are_planned_for(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ["train", "shapes", *TINY, "--dry-run", "--devices", "4", "losses.gather_distributed=true"]
    assert main([*words, "dataset.batch_size=2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["num_devices"] == 4
    assert found["exchange"]["all_reduced"] >= found["memory"]["gradients"]
    assert found["exchange"]["all_gathered"] > 0
    assert main(["train", "shapes", "--devices", "8"]) == 2
    assert "--devices: plans a --dry-run; a run takes trainer.devices=N" in capsys.readouterr().err
    assert main(["train", "shapes", "--json"]) == 2
    assert main(["train", "shapes", "--dry-run", "--devices", "0"]) == 2
    assert "it must be a number from 1 to 1,024" in capsys.readouterr().err


def test_peaks_are_known_by_the_name_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, bf16 in {
        "NVIDIA H100 80GB HBM3": 989.4,
        "NVIDIA H100 PCIe": 756,
        "NVIDIA A100-SXM4-40GB": 312,
        "NVIDIA L4": 121,
        "NVIDIA L40S": 362,
        "NVIDIA GeForce RTX 4090": 165.2,
        "Tesla T4": 0,
    }.items():
        found = peak_of(name)
        assert found is not None
        assert found.bf16 == bf16
    assert peak_of("NVIDIA GeForce GT 710") is None
    assert peak_flops(CPU, "32-true") is None
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA A100-SXM4-80GB")
    gpu = torch.device("cuda")
    assert peak_flops(gpu, "bf16-mixed") == 312e12
    assert peak_flops(gpu, "32-true") == 19.5e12
    monkeypatch.setattr(peaks.torch, "get_float32_matmul_precision", lambda: "high")
    assert peak_flops(gpu, "32-true") == 156e12
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla T4")
    assert peak_flops(gpu, "bf16-mixed") is None
    monkeypatch.setenv(TOLD, "0.5")
    assert peak_flops(CPU, "32-true") == 0.5e12
    for told in ("fast", "-1", "nan", "inf"):
        monkeypatch.setenv(TOLD, told)
        with pytest.raises(ConfigError, match=f"^{TOLD}: got '{told}'; it must be a number"):
            peak_flops(CPU, "32-true")


def test_sizes_are_for_people() -> None:
    assert [data_size(n) for n in (812, 41.5 * 2**20, 3.25 * 2**30, 2**41)] == [
        "812 B",
        "41.5 MiB",
        "3.25 GiB",
        "2 TiB",
    ]
