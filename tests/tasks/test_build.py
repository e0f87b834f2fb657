"""From a config to a model: sizes, seeds, refusals, and that each field of the model reaches it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from impresa.config.dataset import DatasetConfig
from impresa.config.encoder import EncoderConfig
from impresa.config.experiment import ExperimentConfig
from impresa.config.losses import LossConfig
from impresa.config.types import MemoryConfig
from impresa.errors import ConfigError
from impresa.tasks.alignment.build import build_alignment

TINY = EncoderConfig(dim=16, depth=1, num_heads=4, patch_size=4, embed_dim=8, max_len=12)
CONFIG = ExperimentConfig(
    dataset=DatasetConfig(image_size=8),
    vision_encoder=TINY,
    text_encoder=replace(TINY, backbone="transformer"),
)
VOCAB, END = 30, 29


def shapes(config: ExperimentConfig) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in build_alignment(config, VOCAB, END).state_dict().items()}


def test_names_are_stable() -> None:
    parts = {name.split(".")[0] for name in shapes(CONFIG)}
    assert parts == {"vision_encoder", "text_encoder", "loss"}
    assert shapes(CONFIG)["text_encoder.backbone.token_embedding.weight"] == (VOCAB, 16)
    assert build_alignment(CONFIG, VOCAB, END).text_encoder.backbone.end_id == END


def test_a_tokenizer_larger_than_the_bound_is_refused() -> None:
    config = replace(CONFIG, text_encoder=replace(CONFIG.text_encoder, vocab_size=29))
    build_alignment(config, 29, 28)
    with pytest.raises(ConfigError, match=r"text_encoder.vocab_size: 29 is less than the 30 tokens of the tokenizer; "):
        build_alignment(config, VOCAB, END)


def test_weights_follow_the_seed_and_a_switch_in_one_encoder_leaves_the_other() -> None:
    memory = replace(TINY, memory=MemoryConfig(enabled=True, dim=16, num_memory_tokens=3))
    models = []
    for seed, vision_encoder in [(0, TINY), (0, memory), (1, TINY)]:
        torch.manual_seed(seed)
        models.append(build_alignment(replace(CONFIG, vision_encoder=vision_encoder), VOCAB, END).state_dict())
    name = "text_encoder.head.weight"
    assert torch.equal(models[0][name], models[1][name])
    assert not torch.equal(models[0][name], models[2][name])
    assert not torch.equal(models[0][name], models[0]["vision_encoder.head.weight"])


@pytest.mark.parametrize(
    "changes",
    [
        {"dim": 32},
        {"embed_dim": 4},
        {"depth": 2},
        {"mlp_ratio": 2.0},
        {"patch_size": 2},
        {"patch_bias": False},
        {"pre_norm": True},
        {"projection": "linear"},
        {"projection": "none"},
        {"use_attention_pooling": True},
        {"memory": MemoryConfig(enabled=True)},
        {"memory": MemoryConfig(enabled=True, dim=16)},
        {"memory": MemoryConfig(enabled=True, dim=16, num_memory_tokens=3)},
        {"memory": MemoryConfig(enabled=True, dim=16, memory_update="gated")},
        {"memory": MemoryConfig(enabled=True, dim=16, memory_update="static")},
    ],
)
def test_fields_that_shape_the_vision_encoder(changes: dict[str, object]) -> None:
    changed = shapes(replace(CONFIG, vision_encoder=replace(TINY, **changes)))
    assert changed != shapes(CONFIG)
    assert {name for name in changed if "text" in name} == {name for name in shapes(CONFIG) if "text" in name}


@pytest.mark.parametrize("changes", [{"dim": 32}, {"embed_dim": 4}, {"depth": 2}, {"mlp_ratio": 2.0}, {"max_len": 9}])
def test_fields_that_shape_the_text_encoder(changes: dict[str, object]) -> None:
    assert shapes(replace(CONFIG, text_encoder=replace(CONFIG.text_encoder, **changes))) != shapes(CONFIG)


def test_the_image_size_and_the_loss_reach_the_model() -> None:
    assert shapes(replace(CONFIG, dataset=DatasetConfig(image_size=16))) != shapes(CONFIG)
    model = build_alignment(replace(CONFIG, losses=LossConfig(temperature=0.1, learn_temperature=False)), VOCAB, END)
    assert not list(model.loss.parameters())
    assert model.loss.logit_scale.exp().item() == pytest.approx(10)
