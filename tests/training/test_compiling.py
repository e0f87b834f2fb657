"""Compiled towers train as plain ones do, by a backend that needs no C++ compiler."""

from __future__ import annotations

import logging
from itertools import islice
from pathlib import Path

import pytest
import torch

import impresa
from impresa.encoders.tower import Tower
from impresa.errors import ConfigError
from impresa.training import compiling
from impresa.training.compiling import check_compiler, compiled, modules_to_compile
from impresa.training.distributed import join_group
from impresa.training.loop import steps_of, train_step
from impresa.training.parts import build_parts
from impresa.training.run import set_up, train
from tiny_run import tiny_experiment, without_charts
from tiny_vlm import picture

PLAIN = (
    *("vision_encoder.drop_rate=0", "text_encoder.drop_rate=0", "trainer.accumulate_grad_batches=1"),
    *("vision_encoder.memory.enabled=false", "vision_encoder.depth=2", "text_encoder.depth=2"),
    "trainer.max_steps=3",
)


@pytest.fixture(autouse=True)
def _no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "BACKEND", "eager")
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


@pytest.mark.parametrize("packing", ["false", "true"])
@pytest.mark.parametrize(("how", "recomputes"), [("blocks", "true"), ("model", "false")])
def test_losses_are_those_of_the_plain_towers_and_lengths_are_not_compiled_one_by_one(
    how: str, recomputes: str, packing: str, caplog: pytest.LogCaptureFixture
) -> None:
    both = (f"{part}_encoder.activation_checkpointing={recomputes}" for part in ("vision", "text"))
    config = tiny_experiment(*PLAIN, *both, f"optimization.packing={packing}")
    losses, graphs = [], []
    for choice in ("off", how):
        parts = build_parts(config, None)
        with caplog.at_level(logging.INFO), compiled(parts.model, choice):  # type: ignore[arg-type]
            training = set_up(config, parts, join_group(config.trainer))
            steps = list(islice(steps_of(training.train_loader, 1), 8))
            losses.append([])
            for step in steps:
                losses[-1].append(train_step(training, step)["loss"].item())
                graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert graphs[7] == 0 < graphs[8]
    assert graphs[-1] == graphs[-3]  # all lengths of captions that come are variables by then
    (line,) = [record.message for record in caplog.records if record.message.startswith("trainer.compile")]
    assert "compiled" in line
    assert "anew for other inputs" in line


def test_a_compiled_run_is_stored_and_loaded_as_any_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_charts(monkeypatch)
    run = train(tiny_experiment(*PLAIN, "trainer.compile=blocks"), tmp_path / "run", command=[])
    content = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert not any("_orig_mod" in name for name in content["model"])
    assert impresa.load(run, "cpu").encode_image(picture(0)).isfinite().all()


def test_the_plain_model_is_back_at_the_end() -> None:
    model = build_parts(tiny_experiment(*PLAIN), None).model
    with compiled(model, "blocks"):
        assert len([m for m in model.modules() if m._compiled_call_impl is not None]) == 4
    assert all(module._compiled_call_impl is None for module in model.modules())


def test_what_cannot_be_compiled_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    remembers = build_parts(tiny_experiment("trainer.max_steps=1"), None).model
    with pytest.raises(ConfigError, match=r"trainer.compile: model would compile memory tokens, .*; use blocks"):
        modules_to_compile(remembers, "model")
    for tower in (module for module in remembers.modules() if isinstance(module, Tower)):
        tower.backbone = torch.nn.Identity()
    with pytest.raises(ConfigError, match=r"trainer.compile: blocks, but no tower has a stack of equal blocks"):
        modules_to_compile(remembers, "blocks")
    monkeypatch.setattr(compiling, "BACKEND", "no such backend")
    with pytest.raises(ConfigError, match=r"trainer.compile: torch cannot compile for cpu on this machine"):
        check_compiler("blocks", torch.device("cpu"))
