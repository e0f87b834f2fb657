"""Towers that others trained: loaded from folders by the real code, equal to transformers, refused with a reason."""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import tiny_hub
from impresa.config.encoder import EncoderConfig
from impresa.encoders.pretrained import PretrainedBackbone
from impresa.encoders.pretrained_audio import load_audio_backbone
from impresa.encoders.pretrained_text import load_text_backbone
from impresa.encoders.pretrained_vision import load_vision_backbone
from impresa.encoders.vision import VisionEncoder
from impresa.errors import CheckpointError, ConfigError, DataError

FOLDERS: dict[str, Callable[[Path], Path]] = {
    "clip": tiny_hub.clip,
    "siglip": tiny_hub.siglip,
    "dinov2": tiny_hub.dinov2,
    "dinov2_registers": lambda folder: tiny_hub.dinov2(folder, num_registers=3),
    "bert": tiny_hub.bert,
    "whisper": tiny_hub.whisper,
    "clap": tiny_hub.clap,
    "clap_fused": lambda folder: tiny_hub.clap(folder, fused=True),
    "ast": tiny_hub.ast,
}


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("hub")
    return {name: str(make(root / name)) for name, make in FOLDERS.items()}


IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
IDS = torch.tensor([[1, 4, 6, 7, 0, 0], [1, 5, 6, 9, 8, 0]])  # CLIP's end token, 0, is its padding as well
MASK = torch.tensor([[True] * 5 + [False], [True] * 6])
SOUND_SHAPES = {"whisper": (100, 8), "clap": (101, 16), "clap_fused": (101, 16), "ast": (40, 20)}


def _sound(name: str) -> Tensor:
    return torch.randn(3, *SOUND_SHAPES[name], generator=torch.Generator().manual_seed(0))


def _same(ours: Tensor, theirs: Tensor) -> None:
    assert ours.shape == theirs.shape
    assert ((ours - theirs).norm() / theirs.norm()).item() < 1e-5


def _embedding(backbone: PretrainedBackbone, embed_dim: int, *inputs: Tensor) -> Tensor:
    head = backbone.take_head(embed_dim)
    assert head is not None
    return head(backbone(*inputs, summary_only=True).summary)


# --- Values


def test_clip_image_features_are_those_of_transformers(hub: dict[str, str]) -> None:
    theirs = transformers.CLIPModel.from_pretrained(hub["clip"])
    backbone = load_vision_backbone(hub["clip"], 32)
    assert (backbone.dim, backbone.summary) == (32, "cls")
    _same(_embedding(backbone, 20, IMAGES), theirs.get_image_features(IMAGES).pooler_output)
    tokens = theirs.vision_model.post_layernorm(theirs.vision_model(IMAGES).last_hidden_state[:, 1:])
    _same(backbone(IMAGES).tokens, tokens)


def test_clip_text_features_are_those_of_transformers(hub: dict[str, str]) -> None:
    theirs = transformers.CLIPModel.from_pretrained(hub["clip"])
    backbone = load_text_backbone(hub["clip"])
    assert (backbone.dim, backbone.summary) == (24, "eot")
    _same(_embedding(backbone, 20, IDS, MASK), theirs.get_text_features(IDS, attention_mask=MASK.long()).pooler_output)
    _same(backbone(IDS, MASK).tokens[MASK], theirs.text_model(IDS).last_hidden_state[MASK])


def test_siglip_features_are_those_of_transformers(hub: dict[str, str]) -> None:
    theirs = transformers.SiglipModel.from_pretrained(hub["siglip"])
    vision, text = load_vision_backbone(hub["siglip"], 32), load_text_backbone(hub["siglip"])
    _same(vision(IMAGES).tokens, theirs.vision_model(IMAGES).last_hidden_state)
    _same(_embedding(vision, 32, IMAGES), theirs.get_image_features(IMAGES).pooler_output)
    full = torch.randint(1, 15, (2, 16))
    _same(_embedding(text, 32, full, None), theirs.get_text_features(full).pooler_output)
    with pytest.raises(DataError, match="6 tokens, but SigLIP reads texts padded to 16"):
        text(IDS, MASK)


@pytest.mark.parametrize(("name", "num_special"), [("dinov2", 1), ("dinov2_registers", 4)])
def test_dinov2_features_are_those_of_transformers(hub: dict[str, str], name: str, num_special: int) -> None:
    theirs = transformers.AutoModel.from_pretrained(hub[name])(IMAGES)
    features = load_vision_backbone(hub[name], 32)(IMAGES)
    _same(features.summary, theirs.pooler_output)
    _same(features.tokens, theirs.last_hidden_state[:, num_special:])


def test_bert_tokens_are_those_of_transformers(hub: dict[str, str]) -> None:
    theirs = transformers.BertModel.from_pretrained(hub["bert"], add_pooling_layer=False)
    backbone = load_text_backbone(hub["bert"])
    features = backbone(IDS, MASK)
    assert backbone.summary is None
    assert backbone.has_cls
    assert features.mask is MASK
    _same(features.tokens[MASK], theirs(IDS, attention_mask=MASK.long()).last_hidden_state[MASK])
    alone = backbone(IDS[:1, :5], MASK[:1, :5]).tokens
    torch.testing.assert_close(features.tokens[:1, :5], alone, rtol=1e-5, atol=1e-5)


def test_whisper_tokens_are_those_of_transformers(hub: dict[str, str]) -> None:
    audio, mask = _sound("whisper"), torch.arange(100) < torch.tensor([100, 41, 1])[:, None]
    theirs = transformers.WhisperModel.from_pretrained(hub["whisper"]).encoder(audio.transpose(1, 2))
    features = load_audio_backbone(hub["whisper"])(audio, mask)
    _same(features.tokens, theirs.last_hidden_state)
    assert features.mask.sum(dim=1).tolist() == [50, 21, 1]


@pytest.mark.parametrize("name", ["clap", "clap_fused"])
def test_clap_features_are_those_of_transformers(hub: dict[str, str], name: str) -> None:
    audio = _sound(name)
    theirs = transformers.ClapModel.from_pretrained(hub[name]).eval()
    crops = audio[:, None].repeat(1, 4 if name == "clap_fused" else 1, 1, 1)
    not_longer = torch.zeros(3, 1, dtype=torch.bool)
    backbone = load_audio_backbone(hub[name]).eval()
    features = backbone(audio)
    _same(features.summary, theirs.audio_model(crops, is_longer=not_longer).pooler_output)
    _same(features.tokens.mean(dim=1), features.summary)
    _same(
        torch.nn.functional.normalize(_embedding(backbone, 12, audio), dim=-1),
        torch.nn.functional.normalize(theirs.get_audio_features(crops, is_longer=not_longer).pooler_output, dim=-1),
    )


def test_ast_features_are_those_of_transformers(hub: dict[str, str]) -> None:
    audio, mask = _sound("ast"), torch.arange(40) < torch.tensor([40, 6, 1])[:, None]
    theirs = transformers.ASTModel.from_pretrained(hub["ast"])(audio)
    features = load_audio_backbone(hub["ast"])(audio, mask)
    _same(features.summary, theirs.pooler_output)
    _same(features.tokens, theirs.last_hidden_state[:, 2:])
    # 3 rows of pitch and 7 of time, which start at frames 0, 5, 10, ...
    assert features.mask.unflatten(1, (3, 7)).sum(dim=2).tolist() == [[7] * 3, [2] * 3, [1] * 3]


@pytest.mark.parametrize("name", ["clip", "siglip", "dinov2"])
def test_other_image_sizes_interpolate_the_positions(hub: dict[str, str], name: str) -> None:
    backbone = load_vision_backbone(hub[name], 48)
    assert backbone(torch.randn(2, 3, 48, 48)).tokens.shape == (2, 36, 32)
    with pytest.raises(
        ConfigError, match=r"dataset\.image_size: 50 is no multiple of the 8-pixel patches of .*; 48 is"
    ):
        load_vision_backbone(hub[name], 50)


def test_a_tower_saved_alone_is_the_same(hub: dict[str, str], tmp_path: Path) -> None:
    clip = transformers.CLIPModel.from_pretrained(hub["clip"])
    alone = transformers.CLIPVisionModelWithProjection.from_pretrained(
        hub["clip"],
        config=transformers.CLIPVisionConfig(**clip.config.vision_config.to_dict() | {"projection_dim": 20}),
    )
    alone.save_pretrained(tmp_path / "projected")
    alone.vision_model.save_pretrained(tmp_path / "bare")
    siglip = transformers.SiglipModel.from_pretrained(hub["siglip"])
    siglip.text_model.save_pretrained(tmp_path / "siglip_text")

    whole = load_vision_backbone(hub["clip"], 32)
    projected = load_vision_backbone(str(tmp_path / "projected"), 32)
    bare = load_vision_backbone(str(tmp_path / "bare"), 32)
    _same(bare(IMAGES).summary, whole(IMAGES).summary)
    assert bare.take_head(20) is None
    _same(_embedding(projected, 20, IMAGES), _embedding(whole, 20, IMAGES))
    full = torch.randint(1, 15, (2, 16))
    text, whole_text = load_text_backbone(str(tmp_path / "siglip_text")), load_text_backbone(hub["siglip"])
    _same(_embedding(text, 32, full, None), _embedding(whole_text, 32, full, None))


# --- Gradients, heads and numbers


CASES = [
    ("image", "clip"),
    ("image", "siglip"),
    ("image", "dinov2"),
    ("text", "clip"),
    ("text", "siglip"),
    ("text", "bert"),
]
CASES += [("audio", name) for name in SOUND_SHAPES]


def _load(modality: str, folder: str) -> PretrainedBackbone:
    if modality == "image":
        return load_vision_backbone(folder, 32)
    return load_text_backbone(folder) if modality == "text" else load_audio_backbone(folder)


def _inputs(modality: str, name: str) -> tuple[Tensor, ...]:
    if modality == "image":
        return (IMAGES,)
    if modality == "text":
        return (torch.randint(1, 15, (2, 16)), torch.ones(2, 16).bool()) if name == "siglip" else (IDS, MASK)
    return (_sound(name),)


@pytest.mark.parametrize(("modality", "name"), CASES)
@pytest.mark.parametrize("recompute", [False, True])
def test_every_weight_that_is_kept_gets_a_gradient(
    hub: dict[str, str], modality: str, name: str, recompute: bool
) -> None:
    if recompute and name.startswith("clap"):
        with pytest.raises(ConfigError, match=r"activation_checkpointing: .* cannot recompute its activations"):
            _load(modality, hub[name]).recompute_activations()
        return
    backbone = _load(modality, hub[name]).train()
    backbone.take_head(1)
    if recompute:
        backbone.recompute_activations()
    features = backbone(*_inputs(modality, name))
    read = features.tokens.square().mean()
    if features.summary is not None:
        read = read + features.summary.square().mean()
    read.backward()
    silent = [n for n, p in backbone.named_parameters() if p.requires_grad and p.grad is None]
    assert silent == []


def test_without_its_pooler_siglip_has_no_idle_weight(hub: dict[str, str]) -> None:
    backbone = load_vision_backbone(hub["siglip"], 32)
    backbone.take_head(1)
    backbone.pooler = None
    features = backbone(IMAGES)
    assert features.summary is None
    features.tokens.sum().backward()
    assert all(p.grad is not None for p in backbone.parameters())


@pytest.mark.parametrize(
    ("modality", "name", "width"), [("image", "clip", 20), ("text", "clip", 20), ("text", "siglip", 32)]
)
def test_a_head_is_taken_once_and_only_at_its_width(hub: dict[str, str], modality: str, name: str, width: int) -> None:
    backbone = _load(modality, hub[name])
    head = backbone.take_head(width)
    assert isinstance(head, nn.Linear)
    assert backbone.take_head(width) is None
    assert not {id(p) for p in head.parameters()} & {id(p) for p in backbone.parameters()}
    assert _load(modality, hub[name]).take_head(width + 1) is None


def test_half_precision_files_are_read_in_float32(hub: dict[str, str], tmp_path: Path) -> None:
    transformers.CLIPModel.from_pretrained(hub["clip"]).half().save_pretrained(tmp_path)
    backbone = load_vision_backbone(str(tmp_path), 32)
    assert {p.dtype for p in backbone.parameters()} == {torch.float32}


# --- Files that do not fit


def _damaged(folder: str, target: Path, change: Callable[[dict[str, Tensor]], Any]) -> str:
    shutil.copytree(folder, target)
    weights = load_file(target / "model.safetensors")
    change(weights)
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    return str(target)


def test_missing_weights_of_the_tower_are_refused_by_name(hub: dict[str, str], tmp_path: Path) -> None:
    name = "vision_model.encoder.layers.1.mlp.fc1.weight"
    folder = _damaged(hub["clip"], tmp_path / "missing", lambda weights: weights.pop(name))
    with pytest.raises(CheckpointError, match=rf"missing: {name} are not in its files"):
        load_vision_backbone(folder, 32)
    load_text_backbone(folder)  # the other tower is whole


def test_weights_of_another_shape_are_refused_by_name(hub: dict[str, str], tmp_path: Path) -> None:
    name = "text_model.final_layer_norm.weight"
    folder = _damaged(hub["clip"], tmp_path / "shape", lambda weights: weights.update({name: torch.ones(5)}))
    with pytest.raises(CheckpointError, match=rf"shape: {name} have other shapes than config\.json says"):
        load_text_backbone(folder)


def test_weights_without_a_place_are_reported(
    hub: dict[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = _damaged(hub["clip"], tmp_path / "more", lambda weights: weights.update({"surplus": torch.ones(5)}))
    with caplog.at_level(logging.WARNING):
        load_vision_backbone(folder, 32)
        load_text_backbone(hub["bert"])
    reports = [record.getMessage() for record in caplog.records]
    assert reports[0] == f"{folder}: left out surplus, which the tower does not use"
    assert "left out cls.predictions.bias, " in reports[1]
    assert " and 2 more," in reports[1]


def test_a_model_of_another_kind_is_refused(hub: dict[str, str]) -> None:
    wrong: list[tuple[Callable[[], Any], str]] = [
        (
            lambda: load_vision_backbone(hub["bert"], 32),
            r"vision_encoder\.backbone: .* is a bert model, of which we know no tower for images",
        ),
        (
            lambda: load_text_backbone(hub["dinov2"]),
            r"text_encoder\.backbone: .* is a dinov2 model, of which we know no tower for text; use CLIP",
        ),
        (lambda: load_text_backbone(hub["whisper"]), "is a whisper model, of which we know no tower for text"),
        (
            lambda: load_audio_backbone(hub["clip"]),
            r"audio_encoder\.backbone: .* is a clip model, of which we know no tower for sound",
        ),
    ]
    for load, line in wrong:
        with pytest.raises(ConfigError, match=line):
            load()


def test_what_cannot_be_read_is_refused_in_one_line(hub: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name, change in {
        "weightless": lambda folder: (folder / "model.safetensors").unlink(),
        "corrupt": lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 20),
        "garbled": lambda folder: (folder / "config.json").write_text("{"),
    }.items():
        change(Path(shutil.copytree(hub["clip"], tmp_path / name)))
    lines = {
        "nobody/nothing": "it is not in the cache, and HF_HUB_OFFLINE forbids asking the hub; .*hf download nobody",
        str(tmp_path / "absent"): "there is no such folder; give the path of one that was made by save_pretrained",
        "./absent": "there is no such folder",
        str(tmp_path / "empty"): r"the folder has no config\.json",
        str(tmp_path / "weightless"): r"no file named model\.safetensors",
        str(tmp_path / "corrupt"): "save it again with save_pretrained",
        str(tmp_path / "garbled"): "not a valid JSON file",
    }
    for name, line in lines.items():
        with pytest.raises(ConfigError, match=line) as caught:
            load_vision_backbone(name, 32)
        assert str(caught.value).startswith("vision_encoder.backbone: ")
        assert "\n" not in str(caught.value)


def test_loading_leaves_the_verbosity_of_transformers(hub: dict[str, str]) -> None:
    before = transformers.logging.get_verbosity()
    load_vision_backbone(hub["clip"], 32)
    assert transformers.logging.get_verbosity() == before


# --- timm, which is not a dependency: a stand-in with the parts of its interface that we use


class _TimmViT(nn.Module):
    num_features, num_prefix_tokens, has_class_token = 8, 2, True

    def __init__(self) -> None:
        super().__init__()
        self.pretrained_cfg = {"input_size": (3, 32, 32)}
        self.body, self.fc_norm, self.head = nn.Linear(3, 8), nn.LayerNorm(8), nn.Linear(8, 5)

    def reset_classifier(self, num_classes: int, global_pool: str) -> None:
        assert (num_classes, global_pool) == (0, "")
        self.head = nn.Identity()

    def forward_features(self, image: Tensor) -> Tensor:
        return self.body(image.flatten(2).transpose(1, 2)[:, :6])


class _TimmConv(_TimmViT):
    has_class_token = False

    def forward_features(self, image: Tensor) -> Tensor:
        return self.body(image.permute(0, 2, 3, 1)[:, :2, :3]).permute(0, 3, 1, 2)


def _install_timm(monkeypatch: pytest.MonkeyPatch, model: nn.Module) -> list[tuple[str, bool]]:
    made: list[tuple[str, bool]] = []
    timm = ModuleType("timm")
    timm.create_model = lambda name, pretrained: (made.append((name, pretrained)), model)[1]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "timm", timm)
    return made


def test_timm_needs_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match=r"vision_encoder\.backbone: timm:vit needs timm, .*; pip install timm"):
        load_vision_backbone("timm:vit", 32)


def test_timm_tokens_come_without_special_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    made = _install_timm(monkeypatch, _TimmViT())
    backbone = load_vision_backbone("timm:vit_small.augreg", 32)
    assert made == [("vit_small.augreg", True)]
    features = backbone(IMAGES)
    assert (backbone.dim, backbone.summary, features.tokens.shape) == (8, "cls", (3, 4, 8))
    (features.tokens.sum() + features.summary.sum()).backward()
    assert all(p.grad is not None for p in backbone.parameters() if p.requires_grad)


def test_timm_maps_of_features_become_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _TimmConv()
    _install_timm(monkeypatch, model)
    backbone = load_vision_backbone("timm:resnet", 32)
    features = backbone(IMAGES)
    assert (backbone.summary, features.summary, features.tokens.shape) == (None, None, (3, 6, 8))
    torch.testing.assert_close(features.tokens[:, 1], model.forward_features(IMAGES)[:, :, 0, 1])


def test_the_last_block_of_a_hierarchical_timm_model_is_not_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    def with_blocks(*widths: int) -> nn.Module:
        model = _TimmViT()
        model.blocks = nn.Sequential(*(nn.Linear(width, width) for width in widths))
        return model

    _install_timm(monkeypatch, with_blocks(8, 8, 8))
    vit = VisionEncoder(EncoderConfig(backbone="timm:vit", embed_dim=8), 32)
    vit.keep("tokens", drop_last_block=True)
    assert len(vit.backbone.model.blocks) == 2
    for model in (with_blocks(4, 4, 8), _TimmConv()):
        _install_timm(monkeypatch, model)
        stages = VisionEncoder(EncoderConfig(backbone="timm:swin", embed_dim=8), 32)
        assert not stages.has_block_to_spare
        with pytest.raises(ConfigError, match=r"^decoder.prefix_layer: .* has no block to spare; use last$"):
            stages.keep("tokens", drop_last_block=True)


def test_timm_sizes_and_names_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    _install_timm(monkeypatch, _TimmViT())
    with pytest.raises(ConfigError, match="64 is not the 32 pixels of timm:vit; set it to 32"):
        load_vision_backbone("timm:vit", 64)
    monkeypatch.setitem(sys.modules, "timm", SimpleNamespace(create_model=_unknown))
    with pytest.raises(ConfigError, match="timm:vitt cannot be loaded; Unknown model"):
        load_vision_backbone("timm:vitt", 32)


def _unknown(name: str, pretrained: bool) -> None:
    raise RuntimeError(f"Unknown model ({name})")
