"""Pretrained towers that are trained in part: the last blocks of a frozen one, or low-rank adapters in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny_hub
from impresa.config.decoder import TowerLoraConfig
from impresa.config.encoder import EncoderConfig
from impresa.config.optimization import OptimizationConfig
from impresa.encoders.audio import AudioEncoder
from impresa.encoders.text import TextEncoder
from impresa.encoders.tower import Tower
from impresa.encoders.vision import VisionEncoder
from impresa.errors import ConfigError
from impresa.training.parameter_groups import parameter_groups

IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
IDS = torch.tensor([[1, 4, 6, 7, 0, 0], [1, 5, 6, 9, 8, 0]])
FULL = torch.randint(1, 15, (2, 16), generator=torch.Generator().manual_seed(0))
LORA = TowerLoraConfig(r=2, dropout=0.0)
OWN = {"dim": 16, "depth": 2, "num_heads": 2, "patch_size": 8}
Case = tuple[Callable[..., Tower], dict[str, Any], tuple[Tensor, ...]]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return tiny_hub.one_of_each(tmp_path_factory.mktemp("hub"))


def image(config: EncoderConfig) -> Tower:
    return VisionEncoder(config, 32)


def text(config: EncoderConfig) -> Tower:
    return TextEncoder(config, 20, 0)


def audio(config: EncoderConfig) -> Tower:
    return AudioEncoder(config, num_mels=16, max_frames=32)


BUILD = {"image": image, "text": text, "audio": audio}
INPUTS = {
    "image clip": IMAGES, "image siglip": IMAGES, "image dinov2": IMAGES, "image vit": IMAGES,
    "text clip": IDS, "text siglip": FULL, "text bert": IDS, "text transformer": IDS,
    "audio whisper": torch.randn(2, 100, 8), "audio ast": torch.randn(2, 40, 20),
    "audio spectrogram": torch.randn(2, 32, 16),
}  # fmt: skip
FAMILIES = [name for name in INPUTS if name.split()[1] not in ("vit", "transformer", "spectrogram")]


def tower(hub: dict[str, Path], name: str, **changes: Any) -> Tower:
    modality, family = name.split()
    own = {"backbone": str(hub[family])} if family in hub else {"backbone": family, **OWN}
    torch.manual_seed(0)
    return BUILD[modality](EncoderConfig(**{"embed_dim": 12, **own, **changes}))


def trained(model: Tower, name: str) -> set[str]:
    """Names of the parameters that a loss on the embedding gives a gradient, all of which ask for one."""
    model.train()(INPUTS[name]).pooled.square().sum().backward()
    reached = {key for key, parameter in model.named_parameters() if parameter.grad is not None}
    asked = {key for key, parameter in model.named_parameters() if parameter.requires_grad}
    assert reached == asked
    return reached


@pytest.mark.parametrize("name", INPUTS)
def test_the_last_blocks_alone_are_trained(hub: dict[str, Path], name: str) -> None:
    model = tower(hub, name, freeze=True, unfreeze_last=1, projection="none", drop_rate=0.0)
    last = {id(parameter) for parameter in model.backbone.blocks[-1].parameters()}
    found = trained(model, name)
    inside = {key for key, parameter in model.backbone.named_parameters() if id(parameter) in last}
    assert {key.removeprefix("backbone.") for key in found if key.startswith("backbone.")} == inside
    assert "head.weight" in found
    assert model.backbone.blocks[-1].training
    assert not model.backbone.blocks[0].training
    assert not model.eval().backbone.blocks[-1].training


def test_the_own_head_is_trained_with_the_last_blocks_and_has_their_rate(hub: dict[str, Path]) -> None:
    for number, is_trained in ((0, False), (2, True)):
        model = tower(hub, "image clip", freeze=True, unfreeze_last=number, projection="none", embed_dim=20)
        assert model.has_own_head
        assert model.head.weight.requires_grad is is_trained
    groups = {group["name"] for group in parameter_groups(model, OptimizationConfig())}
    assert groups == {"pretrained_decay", "pretrained_no_decay"}


@pytest.mark.parametrize(
    ("name", "key"), [("image clip", "vision"), ("text transformer", "text"), ("audio ast", "audio")]
)
def test_more_blocks_than_there_are_are_refused(hub: dict[str, Path], name: str, key: str) -> None:
    tower(hub, name, freeze=True, unfreeze_last=2)
    with pytest.raises(ConfigError, match=rf"^{key}_encoder\.unfreeze_last: 3 blocks, but the tower has 2; "):
        tower(hub, name, freeze=True, unfreeze_last=3)


def test_a_tower_without_a_stack_of_blocks_is_refused(hub: dict[str, Path]) -> None:
    for changes in ({"freeze": True, "unfreeze_last": 1}, {"lora": LORA}):
        with pytest.raises(ConfigError, match=r"^audio_encoder\.(unfreeze_last|lora): Clap\w+ has no stack of"):
            tower(hub, "audio clap", **changes)


@pytest.mark.parametrize("name", FAMILIES)
def test_adapters_start_as_the_frozen_tower_and_alone_are_trained(hub: dict[str, Path], name: str) -> None:
    frozen, adapted = tower(hub, name, freeze=True), tower(hub, name, lora=LORA)
    torch.testing.assert_close(adapted.eval()(INPUTS[name]).pooled, frozen.eval()(INPUTS[name]).pooled)
    before = {key: tensor.clone() for key, tensor in adapted.state_dict().items()}
    optimizer = torch.optim.SGD((p for p in adapted.parameters() if p.requires_grad), lr=0.1)
    for _ in range(2):  # the first step moves B alone, for it starts at zero
        adapted.zero_grad()
        found = trained(adapted, name)
        optimizer.step()
    moved = {key for key, tensor in adapted.state_dict().items() if not torch.equal(tensor, before[key])}
    in_backbone = {key for key in found if key.startswith("backbone.")}
    assert in_backbone == {key for key in adapted.state_dict() if "lora_" in key}
    assert {key for key in moved if key.startswith("backbone.")} <= in_backbone
    assert any("lora_A" in key for key in moved)
    num_linears = sum(isinstance(layer, torch.nn.Linear) for layer in frozen.backbone.blocks.modules())
    assert len(in_backbone) == 2 * num_linears


def test_adapters_learn_as_what_is_new(hub: dict[str, Path]) -> None:
    model = tower(hub, "image clip", lora=LORA, projection="none", embed_dim=20)
    (group,) = parameter_groups(model, OptimizationConfig(lr=1e-2, lr_pretrained=1e-5))
    assert (group["name"], group["lr"]) == ("decay", 1e-2)
    assert not model.head.weight.requires_grad


def test_adapters_go_where_they_are_told(hub: dict[str, Path]) -> None:
    model = tower(hub, "image clip", lora=TowerLoraConfig(r=3, target_modules=("q_proj",)))
    found = [key for key in model.state_dict() if "lora_A" in key]
    assert len(found) == 2
    assert all(".q_proj." in key for key in found)
    assert model.state_dict()[found[0]].shape == (3, 32)
    line = r"^vision_encoder\.lora\.target_modules: no linear layer of the blocks is called query; choose among fc1, "
    with pytest.raises(ConfigError, match=line):
        tower(hub, "image clip", lora=TowerLoraConfig(target_modules=("q_proj", "query")))


@pytest.mark.parametrize("field", [{"r": 4}, {"alpha": 4.0}, {"dropout": 0.9}, {"target_modules": ("v_proj",)}])
def test_each_setting_of_adapters_has_an_effect(hub: dict[str, Path], field: dict[str, Any]) -> None:
    def after_a_step(**settings: Any) -> Tensor:
        config = TowerLoraConfig(**{"r": 2, "dropout": 0.0, **settings})
        model = tower(hub, "image clip", lora=config, projection="none", embed_dim=20).train()
        optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            model(IMAGES).pooled.square().mean().backward()
            optimizer.step()
        return model.eval()(IMAGES).pooled

    assert not torch.allclose(after_a_step(), after_a_step(**field), rtol=1e-6)


def test_recomputed_blocks_with_adapters_give_the_same_gradient(hub: dict[str, Path]) -> None:
    gradients = []
    for recompute in (False, True):
        model = tower(hub, "image clip", lora=LORA, activation_checkpointing=recompute)
        assert any(getattr(m, "gradient_checkpointing", False) for m in model.modules()) is recompute
        trained(model, "image clip")
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(*gradients)


def test_a_pretrained_tower_that_cannot_recompute_is_refused_by_its_own_key(tmp_path: Path) -> None:
    config = EncoderConfig(backbone=str(tiny_hub.clap(tmp_path)), embed_dim=12, activation_checkpointing=True)
    with pytest.raises(ConfigError, match=r"^audio_encoder.activation_checkpointing: .* cannot recompute its activ"):
        audio(config)


@pytest.mark.parametrize("name", INPUTS)
def test_recomputed_blocks_give_every_tower_the_same_gradients_for_less_memory(hub: dict[str, Path], name: str) -> None:
    gradients: list[list[Tensor]] = []
    kept: list[int] = []
    for recompute in (False, True):
        model = tower(hub, name, activation_checkpointing=recompute)
        weights = {parameter.data_ptr() for parameter in model.parameters()}
        bytes_kept: list[int] = []

        def keep(tensor: Tensor, known: set[int] = weights, sizes: list[int] = bytes_kept) -> Tensor:
            sizes.append(0 if tensor.data_ptr() in known else tensor.nbytes)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = model.train()(INPUTS[name]).pooled.square().sum()
        loss.backward()
        kept.append(sum(bytes_kept))
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(*gradients)
    assert kept[1] < 0.7 * kept[0]
