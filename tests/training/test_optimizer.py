from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tiny_hub
from impresa.config.encoder import EncoderConfig
from impresa.config.experiment import ExperimentConfig
from impresa.config.optimization import OptimizationConfig
from impresa.encoders.memory import MemoryTokens
from impresa.encoders.vision import VisionEncoder
from impresa.tasks.alignment.build import build_alignment
from impresa.tasks.alignment.model import AlignmentModel
from impresa.tasks.answering.build import build_vlm
from impresa.training.optimizer import build_optimizer, parameter_groups
from tiny_run import HEARING, tiny_experiment
from tiny_vlm import tiny_vlm


def model_of(config: ExperimentConfig) -> AlignmentModel:
    return build_alignment(config, vocab_size=300, end_id=1)


def groups_of(model: nn.Module, **settings: Any) -> dict[str, dict[str, Any]]:
    groups = parameter_groups(model, OptimizationConfig(**settings))
    return {str(group["name"]): group for group in groups}


def names_in(group: dict[str, Any], model: nn.Module) -> set[str]:
    members = {id(parameter) for parameter in group["params"]}
    return {name for name, parameter in model.named_parameters() if id(parameter) in members}


def test_every_trainable_parameter_is_in_exactly_one_group() -> None:
    model = model_of(tiny_experiment())
    members = [id(p) for group in parameter_groups(model, OptimizationConfig()) for p in group["params"]]  # type: ignore[attr-defined]
    assert sorted(members) == sorted(id(p) for p in model.parameters())


def test_only_weight_matrices_decay() -> None:
    model = model_of(tiny_experiment("vision_encoder.memory.enabled=false"))
    groups = groups_of(model, weight_decay=0.3)
    linears = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert names_in(groups["decay"], model) == linears
    assert groups["decay"]["weight_decay"] == 0.3
    assert groups["no_decay"]["weight_decay"] == 0.0


@pytest.mark.parametrize(
    "spared",
    [
        pytest.param("text_encoder.backbone.token_embedding.weight", id="embedding"),
        pytest.param("text_encoder.backbone.positions", id="position embedding"),
        pytest.param("vision_encoder.backbone.cls", id="class token"),
        pytest.param("vision_encoder.backbone.patch_embedding.bias", id="bias"),
    ],
)
def test_no_decay_for(spared: str) -> None:
    model = model_of(tiny_experiment())
    assert spared in names_in(groups_of(model)["no_decay"], model)


def test_no_decay_for_norms() -> None:
    model = model_of(tiny_experiment("vision_encoder.memory.enabled=false"))
    norms = {
        f"{name}.{part}"
        for name, module in model.named_modules()
        if isinstance(module, nn.LayerNorm)
        for part in ("weight", "bias")
    }
    assert norms
    assert norms <= names_in(groups_of(model)["no_decay"], model)


def test_memory_is_a_group_without_decay_and_with_its_own_learning_rate() -> None:
    model = model_of(tiny_experiment())
    memory = next(module for module in model.modules() if isinstance(module, MemoryTokens))
    group = groups_of(model, lr=1e-3, lr_memory=1e-2, weight_decay=0.3)["memory"]
    assert {id(p) for p in group["params"]} == {id(p) for p in memory.parameters()}
    assert (group["weight_decay"], group["peak_lr"]) == (0.0, 1e-2)
    assert groups_of(model, lr=1e-3)["memory"]["peak_lr"] == 1e-3


@pytest.mark.parametrize(
    ("kind", "names", "factor"), [("clip", ["scale"], 1), ("siglip", ["scale", "bias.value"], 100)]
)
def test_scale_and_bias_are_a_group_with_a_learning_rate_of_its_own(kind: str, names: list[str], factor: int) -> None:
    model = model_of(tiny_experiment(f"losses.type={kind}"))
    group = groups_of(model, lr=1e-3, weight_decay=0.3)["logits"]
    assert names_in(group, model) == {f"loss.logit_{name}" for name in names}
    assert (group["weight_decay"], group["peak_lr"]) == (0.0, pytest.approx(1e-3 * factor))
    assert groups_of(model, lr=1e-3, lr_logits=0.02)["logits"]["peak_lr"] == 0.02


def test_pretrained_towers_have_a_learning_rate_of_their_own(tmp_path: Path) -> None:
    tower = EncoderConfig(backbone=str(tiny_hub.clip(tmp_path)), projection="none", embed_dim=20)
    model = VisionEncoder(tower, 32)
    groups = groups_of(model, lr=1e-3, lr_pretrained=1e-5, weight_decay=0.3)
    assert sorted(groups) == ["pretrained_decay", "pretrained_no_decay"]
    assert {group["peak_lr"] for group in groups.values()} == {1e-5}
    assert [group["weight_decay"] for group in groups.values()] == [0.3, 0.0]
    assert "head.weight" in names_in(groups["pretrained_decay"], model)
    new_head = VisionEncoder(replace(tower, embed_dim=12), 32)
    groups = groups_of(new_head, lr=1e-3, lr_pretrained=1e-5)
    assert names_in(groups["decay"], new_head) == {"head.weight"}
    assert groups["decay"]["peak_lr"] == 1e-3
    assert {group["peak_lr"] for group in groups_of(new_head, lr=1e-3).values()} == {1e-3}


def test_the_fusion_is_a_group_of_its_own_where_it_has_a_rate_and_numbers_stay_where_it_has_none() -> None:
    model = build_vlm(tiny_vlm(), 280)
    groups = groups_of(model, lr=1e-3, lr_fusion=1e-2, weight_decay=0.3)
    fusion = {f"fusion.{name}" for name, _ in model.fusion.named_parameters()}
    assert names_in(groups["fusion_decay"], model) == {"fusion.projections.image.weight"}
    assert names_in(groups["fusion_no_decay"], model) == fusion - {"fusion.projections.image.weight"}
    assert [groups[f"fusion_{kind}"]["weight_decay"] for kind in ("decay", "no_decay")] == [0.3, 0.0]
    assert {groups[f"fusion_{kind}"]["peak_lr"] for kind in ("decay", "no_decay")} == {1e-2}
    # Checkpoints of before know these parameters by their numbers.
    assert sorted(groups_of(model)) == ["decay", "no_decay"]


def test_a_fused_embedding_is_a_fusion_with_its_head() -> None:
    model = model_of(tiny_experiment(*HEARING, "losses.pairs=[image-text,text-audio,image+audio-text]"))
    groups = groups_of(model, lr_fusion=1e-2)
    found = names_in(groups["fusion_decay"], model) | names_in(groups["fusion_no_decay"], model)
    assert found == {name for name, _ in model.named_parameters() if name.startswith("fusion.")}
    assert "fusion.head.weight" in found


def test_frozen_parameters_have_no_optimizer_state() -> None:
    model = model_of(tiny_experiment())
    model.text_encoder.requires_grad_(False)
    members = [p for group in parameter_groups(model, OptimizationConfig()) for p in group["params"]]  # type: ignore[attr-defined]
    assert len(members) == len(list(model.vision_encoder.parameters())) + 1


def test_parameters_of_a_convolution_and_of_torchs_attention_decay() -> None:
    model = nn.ModuleList([nn.Conv2d(3, 4, 2), nn.MultiheadAttention(4, 2)])
    decayed = names_in(groups_of(model)["decay"], model)
    assert decayed == {"0.weight", "1.in_proj_weight", "1.out_proj.weight"}


def test_the_settings_reach_adamw_and_adam() -> None:
    model = model_of(tiny_experiment())
    for name, kind in (("adamw", torch.optim.AdamW), ("adam", torch.optim.Adam)):
        config = OptimizationConfig(optimizer=name, lr=3e-4, betas=(0.8, 0.95), eps=1e-6)
        optimizer = build_optimizer(model, config)
        assert type(optimizer) is kind
        assert optimizer.param_groups[0]["betas"] == (0.8, 0.95)
        assert optimizer.param_groups[0]["eps"] == 1e-6
        assert optimizer.param_groups[0]["lr"] == 3e-4


def test_the_first_beta_is_the_momentum_of_sgd() -> None:
    optimizer = build_optimizer(model_of(tiny_experiment()), OptimizationConfig(optimizer="sgd", betas=(0.7, 0.9)))
    assert isinstance(optimizer, torch.optim.SGD)
    assert optimizer.param_groups[0]["momentum"] == 0.7


def test_it_is_fused_but_for_16_bit_mixed_precision() -> None:
    model = model_of(tiny_experiment())
    assert build_optimizer(model, OptimizationConfig()).param_groups[0]["fused"]
    assert not build_optimizer(model, OptimizationConfig(precision="16-mixed")).param_groups[0]["fused"]
