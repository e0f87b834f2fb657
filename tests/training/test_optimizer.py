from __future__ import annotations

import copy
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import nn

import tiny_hub
from impresa.config.encoder import EncoderConfig
from impresa.config.experiment import ExperimentConfig
from impresa.config.optimization import OptimizationConfig
from impresa.encoders.memory import MemoryTokens
from impresa.encoders.vision import VisionEncoder
from impresa.errors import ConfigError
from impresa.tasks.alignment.build import build_alignment
from impresa.tasks.alignment.model import AlignmentModel
from impresa.tasks.answering.build import build_vlm
from impresa.training.optimizer import build_optimizer, check_optimizer
from impresa.training.parameter_groups import LOWEST_RATE, parameter_groups
from impresa.training.stored import load_optimizer
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
    members = [id(p) for group in parameter_groups(model, OptimizationConfig()) for p in group["params"]]
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
    members = [p for group in parameter_groups(model, OptimizationConfig()) for p in group["params"]]
    assert len(members) == len(list(model.vision_encoder.parameters())) + 1


def test_parameters_of_a_convolution_and_of_torchs_attention_decay() -> None:
    model = nn.ModuleList([nn.Conv2d(3, 4, 2), nn.MultiheadAttention(4, 2)])
    decayed = names_in(groups_of(model)["decay"], model)
    assert decayed == {"0.weight", "1.in_proj_weight", "1.out_proj.weight"}


def test_the_settings_reach_adamw_and_adam() -> None:
    model = model_of(tiny_experiment())
    names: tuple[Literal["adamw", "adam"], ...] = ("adamw", "adam")
    for name, kind in zip(names, (torch.optim.AdamW, torch.optim.Adam), strict=True):
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


def test_muon_has_the_matrices_of_blocks_and_adamw_the_rest() -> None:
    model = model_of(tiny_experiment())
    optimizer = build_optimizer(model, OptimizationConfig(optimizer="muon", weight_decay=0.3))
    of_muon = {id(p) for group in optimizer.param_groups if group["is_of_muon"] for p in group["params"]}
    blocks = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    linears = [module for block in blocks for module in block.modules() if isinstance(module, nn.Linear)]
    assert of_muon == {id(linear.weight) for linear in linears}
    members = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(members) == sorted(id(p) for p in model.parameters())
    assert not any(p.requires_grad and id(p) in of_muon for p in model.loss.parameters())


def test_muon_steps_as_torchs_own_two_optimizers_do_and_leaves_a_vocabulary_to_adamw() -> None:
    torch.manual_seed(0)
    table, block, lm_head = nn.Embedding(4, 6), nn.Linear(6, 3), nn.Linear(3, 4, bias=False)
    one = nn.ModuleDict({"table": table, "blocks": nn.ModuleList([block]), "lm_head": lm_head})
    two = copy.deepcopy(one)
    named = dict(two.named_parameters())
    config = OptimizationConfig(optimizer="muon", weight_decay=0.1, lr=1e-2)
    ours, matrix = build_optimizer(one, config), named["blocks.0.weight"]
    muon = torch.optim.Muon([matrix], lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    rest = [
        {"params": [named["lm_head.weight"]], "weight_decay": 0.1},
        {"params": [named["table.weight"], named["blocks.0.bias"]], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(rest, lr=1e-2)
    for step in range(3):
        for mine, other in zip(one.parameters(), two.parameters(), strict=True):
            torch.manual_seed(step)
            mine.grad = torch.randn_like(mine)
            other.grad = mine.grad.clone()
        for optimizer in (ours, muon, adamw):
            optimizer.step()
        stored, ours = ours.state_dict(), build_optimizer(one, config)  # the state is one, and goes through checkpoints
        load_optimizer(ours, stored)
    for mine, other in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-7)


def test_muon_without_a_matrix_of_a_block_is_refused() -> None:
    model = model_of(tiny_experiment())
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".blocks." not in name)
    with pytest.raises(ConfigError, match=r"optimization.optimizer: muon is for the matrices of blocks, and nothing"):
        build_optimizer(model, OptimizationConfig(optimizer="muon"))


def test_eight_bits_are_for_large_matrices_alone() -> None:
    pytest.importorskip("bitsandbytes")
    model = nn.ModuleList([nn.Linear(64, 64), nn.Embedding(64, 64), nn.Linear(4, 4)])
    optimizer = build_optimizer(model, OptimizationConfig(optimizer="adamw8bit"))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    kinds = {name: optimizer.state[parameter]["state1"].dtype for name, parameter in model.named_parameters()}
    assert [name for name, dtype in kinds.items() if dtype == torch.uint8] == ["0.weight"]


def test_eight_bits_are_refused_where_the_library_cannot_make_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = pytest.importorskip("bitsandbytes").optim.AdamW8bit

    def fail(_: object) -> None:
        raise NotImplementedError("no kernel")

    monkeypatch.setattr(kind, "step", fail)
    with pytest.raises(ConfigError, match=r"optimization.optimizer: bitsandbytes has no adamw8bit for cpu \(no kernel"):
        check_optimizer(nn.Linear(4, 4), OptimizationConfig(optimizer="adamw8bit"), torch.device("cpu"))


def test_layers_of_a_pretrained_tower_have_rates_that_fall_from_block_to_block(tmp_path: Path) -> None:
    tower = EncoderConfig(backbone=str(tiny_hub.clip(tmp_path)), projection="none", embed_dim=20)
    model = VisionEncoder(tower, 32)
    groups = groups_of(model, lr=1e-3, lr_pretrained=1e-4, layer_decay=0.5)
    rates = {name: g["peak_lr"] * g["lr_scale"] for g in groups.values() for name in names_in(g, model)}
    blocks = len(model.backbone.blocks)
    assert blocks > 1
    for name, rate in rates.items():
        number = re.search(r"layers\.(\d+)\.", name)
        below = blocks - 1 - int(number[1]) if number else 0 if re.search("post_layernorm|head", name) else blocks
        assert rate == pytest.approx(1e-4 * 0.5**below), name
    assert {g["key"] for g in groups.values()} == {"lr_pretrained", LOWEST_RATE, None}
    assert all(g["lr_scale"] == 0.5**blocks for g in groups.values() if g["key"] == LOWEST_RATE)


def test_a_decay_of_layers_without_lower_layers_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"optimization.layer_decay: 0.5 needs trained layers below the last block"):
        build_optimizer(model_of(tiny_experiment()), OptimizationConfig(layer_decay=0.5))
