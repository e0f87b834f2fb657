"""Each part of a model moves as fast as its own learning rate says, in a real step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import tiny_hub
from impresa.config.encoder import EncoderConfig
from impresa.config.experiment import ExperimentConfig
from impresa.config.runs import adopt_towers
from impresa.training.distributed import join_group
from impresa.training.loop import steps_of, train_step
from impresa.training.parts import build_parts
from impresa.training.run import set_up
from tiny_qwen import save_qwen
from tiny_run import finished_run, tiny_experiment
from tiny_vlm import tiny_qwen_vlm, tiny_vlm, tiny_vlm_on

ONE_STEP = (
    *("trainer.max_steps=1", "optimization.warmup_epochs=0", "optimization.scheduler=constant"),
    *("optimization.optimizer=adam", "optimization.weight_decay=0", "optimization.ema_decay=null"),
    *("optimization.lr=1e-3", "optimization.lr_pretrained=1e-4", "optimization.lr_memory=5e-3"),
    "optimization.eps=1e-20",
)
"""The first step of Adam moves a number by the learning rate, whatever its gradient."""


def moved(config: ExperimentConfig, logged: dict[str, float] | None = None) -> dict[str, float]:
    """How far one step moves the parameters: the longest way in each part of the model; `logged` gets the rates that
    are logged."""
    parts = build_parts(config, None)
    trained = {name: p for name, p in parts.model.named_parameters() if p.requires_grad}
    before = {name: parameter.detach().clone() for name, parameter in trained.items()}
    training = set_up(config, parts, join_group(config.trainer))
    logs = train_step(training, next(steps_of(training.train_loader, config.trainer.accumulate_grad_batches)))
    if logged is not None:
        logged |= {name: value.item() for name, value in logs.items() if name.startswith("lr")}
    assert training.state.step == 1
    ways: dict[str, float] = {}
    for name, parameter in trained.items():
        part = "memory" if ".memory." in name else "lora" if "lora_B" in name else name.split(".")[0]
        if "lora_A" in name:  # B starts at zero, so that A has no gradient
            continue
        ways[part] = max(ways.get(part, 0.0), (parameter.detach() - before[name]).abs().max().item())
    return ways


def test_memory_logits_and_a_pretrained_tower_have_rates_of_their_own(tmp_path: Path) -> None:
    width = ("vision_encoder.embed_dim=20", "text_encoder.embed_dim=20")
    config = tiny_experiment(*ONE_STEP, *width, "optimization.lr_logits=2e-2")
    tower = EncoderConfig(backbone=str(tiny_hub.clip(tmp_path)), projection="none", embed_dim=20, max_len=12)
    ways = moved(replace(config, text_encoder=tower))
    expected = {"vision_encoder": 1e-3, "memory": 5e-3, "loss": 2e-2, "text_encoder": 1e-4}
    assert ways == pytest.approx(expected, rel=1e-2)


def test_layers_move_less_the_lower_they_stand(tmp_path: Path) -> None:
    width = ("vision_encoder.embed_dim=20", "text_encoder.embed_dim=20")
    tower = EncoderConfig(backbone=str(tiny_hub.clip(tmp_path)), projection="none", embed_dim=20, max_len=12)
    plain = tiny_experiment(*ONE_STEP, *width)
    config = replace(plain, text_encoder=tower, optimization=replace(plain.optimization, layer_decay=0.5))
    parts = build_parts(config, None)
    text_encoder = parts.model.get_submodule("text_encoder")
    before = {name: parameter.detach().clone() for name, parameter in text_encoder.named_parameters()}
    training = set_up(config, parts, join_group(config.trainer))
    logs = train_step(training, next(steps_of(training.train_loader, 1)))
    ways = {n: (p.detach() - before[n]).abs().max().item() for n, p in text_encoder.named_parameters()}
    tops = [name for name in ways if "mlp.fc2.weight" in name]
    blocks = len(tops)
    low = next(way for name, way in ways.items() if "token_embedding" in name)
    assert (low, ways[tops[-1]]) == pytest.approx((1e-4 * 0.5**blocks, 1e-4), rel=1e-2)
    assert logs["lr_lowest_layer"].item() == pytest.approx(1e-4 * 0.5**blocks)
    assert logs["lr_pretrained"].item() == pytest.approx(1e-4)


def test_towers_of_a_run_that_are_trained_on_are_pretrained() -> None:
    towers = (f"vision_encoder.checkpoint={finished_run()}", "vision_encoder.freeze=false")
    towers += (f"text_encoder.checkpoint={finished_run()}", "text_encoder.freeze=false")
    ways = moved(adopt_towers(tiny_experiment(*ONE_STEP, *towers)))
    assert ways == pytest.approx({"vision_encoder": 1e-4, "memory": 5e-3, "loss": 1e-3, "text_encoder": 1e-4}, rel=1e-2)
    ways = moved(adopt_towers(tiny_vlm_on(finished_run(), *ONE_STEP, "vision_encoder.freeze=false")))
    assert ways == pytest.approx({"vision_encoder": 1e-4, "memory": 5e-3, "fusion": 1e-3, "decoder": 1e-3}, rel=1e-2)


def test_fusion_and_adapters_have_rates_of_their_own_and_all_are_logged(tmp_path: Path) -> None:
    lora = ("decoder.use_lora=true", "decoder.lora.dropout=0", "decoder.use_trm_recursion=true", "fusion.projector=mlp")
    own = ("optimization.lr_fusion=3e-2", "optimization.lr_lora=4e-4", "optimization.lr_memory=null")
    logged: dict[str, float] = {}
    config = tiny_qwen_vlm(save_qwen(tmp_path), *ONE_STEP, *lora, *own, "optimization.lr_pretrained=null")
    ways = moved(config, logged)
    expected = {"vision_encoder": 1e-3, "fusion": 3e-2, "lora": 4e-4, "decoder": 1e-3}
    assert ways == pytest.approx(expected, rel=1e-2)
    assert logged == pytest.approx({"lr": 1e-3, "lr_fusion": 3e-2, "lr_lora": 4e-4})


def test_rates_of_parts_follow_the_schedule_of_all() -> None:
    own = ("optimization.lr=1e-2", "optimization.lr_fusion=4e-2", "optimization.min_lr=0", "trainer.epochs=4")
    config = tiny_vlm(*own, "optimization.warmup_steps=3", "optimization.scheduler=cosine")
    training = set_up(config, build_parts(config, None), join_group(config.trainer))
    steps = steps_of(training.train_loader, 1)
    logs = [train_step(training, next(steps)) for _ in range(training.plan.total_steps)]
    assert len({log["lr"].item() for log in logs}) > 6
    for log in logs:
        assert log["lr_fusion"].item() == pytest.approx(4 * log["lr"].item())
