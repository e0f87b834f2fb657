"""What stands between a backbone and its embedding: Perceiver, pretrained heads, frozen towers."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor

import tiny_hub
from impresa.config.encoder import EncoderConfig
from impresa.encoders.audio import AudioEncoder
from impresa.encoders.text import TextEncoder
from impresa.encoders.tower import Tower
from impresa.encoders.vision import VisionEncoder
from impresa.errors import ConfigError

PERCEIVER = EncoderConfig(
    dim=16, depth=2, num_heads=2, patch_size=8, embed_dim=12, use_perceiver=True, perceiver_num_latents=5,
    perceiver_num_layers=2, perceiver_num_heads=2,
)  # fmt: skip
IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
IDS = torch.tensor([[1, 4, 6, 7, 0, 0], [1, 5, 6, 9, 8, 0]])
MASK = torch.tensor([[True] * 5 + [False], [True] * 6])


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("hub")
    makers = (tiny_hub.clip, tiny_hub.siglip, tiny_hub.dinov2, tiny_hub.bert, tiny_hub.whisper, tiny_hub.ast)
    return {make.__name__: str(make(root / make.__name__)) for make in makers}


def _gradients(tower: Tower, *inputs: Tensor) -> list[str]:
    """Names of trainable parameters that a loss on the embedding does not reach."""
    tower.zero_grad()
    tower.train()(*inputs).pooled.square().sum().backward()
    return [name for name, parameter in tower.named_parameters() if parameter.requires_grad and parameter.grad is None]


# --- Perceiver


def test_the_perceiver_compresses_and_is_averaged() -> None:
    encoder = VisionEncoder(PERCEIVER, 32)
    output = encoder(IMAGES, return_tokens=True)
    assert output.tokens.shape == (3, 5, 16)
    assert output.mask is None
    torch.testing.assert_close(output.pooled, encoder.head(output.tokens.mean(dim=1)))
    assert _gradients(encoder, IMAGES) == []


@pytest.mark.parametrize(
    "field", ["perceiver_num_latents", "perceiver_num_layers", "perceiver_num_heads", "use_perceiver"]
)
def test_each_perceiver_field_changes_the_result(field: str) -> None:
    value = False if field == "use_perceiver" else 1
    results = []
    for config in (PERCEIVER, replace(PERCEIVER, **{field: value})):
        torch.manual_seed(0)
        results.append(VisionEncoder(config, 32).eval()(IMAGES).pooled)
    assert not torch.allclose(*results, atol=1e-4)


def test_the_projection_is_left_out_under_the_perceiver() -> None:
    names = {name for name, _ in VisionEncoder(PERCEIVER, 32).named_parameters()}
    assert not any(name.startswith("projection") for name in names)
    assert {"perceiver.latents", "head.weight"} <= names


def test_attention_pooling_is_ignored_under_the_perceiver() -> None:
    encoder = VisionEncoder(replace(PERCEIVER, use_attention_pooling=True), 32)
    assert {name.partition(".")[0] for name, _ in encoder.named_parameters()} == {"backbone", "perceiver", "head"}
    tokens = encoder(IMAGES, return_tokens=True).tokens
    torch.testing.assert_close(encoder(IMAGES).pooled, encoder.head(tokens.mean(dim=1)))


def test_memory_tokens_pass_by_the_perceiver() -> None:
    memory = replace(PERCEIVER.memory, enabled=True, dim=16, num_memory_tokens=3)
    output = VisionEncoder(replace(PERCEIVER, memory=memory), 32)(IMAGES, return_tokens=True)
    assert output.tokens.shape == (3, 5, 16)
    assert output.memory.shape == (3, 3, 16)


# --- Pretrained towers


def _pretrained(folder: str, **changes: object) -> EncoderConfig:
    return EncoderConfig(**{"backbone": folder, "embed_dim": 12, "perceiver_num_heads": 2, **changes})


def test_clip_starts_as_clip_when_nothing_new_stands_between(hub: dict[str, str]) -> None:
    theirs = transformers.CLIPModel.from_pretrained(hub["clip"])
    config = _pretrained(hub["clip"], projection="none", embed_dim=20)
    image = VisionEncoder(config, 32)(IMAGES).pooled
    text = TextEncoder(config, 20, 0)(IDS, MASK).pooled
    torch.testing.assert_close(image, theirs.get_image_features(IMAGES).pooler_output, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(text, theirs.get_text_features(IDS).pooler_output, rtol=1e-5, atol=1e-5)


def test_siglip_starts_as_siglip_when_nothing_new_stands_between(hub: dict[str, str]) -> None:
    theirs, ids = transformers.SiglipModel.from_pretrained(hub["siglip"]), torch.randint(1, 15, (2, 16))
    config = _pretrained(hub["siglip"], projection="none", embed_dim=32)
    image, text = VisionEncoder(config, 32)(IMAGES).pooled, TextEncoder(config, 20, 0)(ids).pooled
    torch.testing.assert_close(image, theirs.get_image_features(IMAGES).pooler_output, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(text, theirs.get_text_features(ids).pooler_output, rtol=1e-5, atol=1e-5)


def test_a_text_encoder_is_averaged_over_its_real_tokens_or_pooled_at_cls(hub: dict[str, str]) -> None:
    model = transformers.BertModel.from_pretrained(hub["bert"], add_pooling_layer=False)
    tokens = model(IDS, attention_mask=MASK.long()).last_hidden_state
    weight = MASK[:, :, None].float()
    for pooling, pooled in {"auto": (tokens * weight).sum(1) / weight.sum(1), "cls": tokens[:, 0]}.items():
        encoder = TextEncoder(_pretrained(hub["bert"], projection="none", pooling=pooling), 20, 0)
        torch.testing.assert_close(encoder(IDS, MASK).pooled, encoder.head(pooled), rtol=1e-4, atol=1e-5)
    short = encoder(IDS[:1, :5], MASK[:1, :5]).pooled
    torch.testing.assert_close(encoder(IDS, MASK).pooled[:1], short, rtol=1e-5, atol=1e-5)


def test_a_token_that_a_tower_lacks_is_refused(hub: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="pooling: cls is no token of this tower; choose auto or mean"):
        VisionEncoder(_pretrained(hub["siglip"], pooling="cls"), 32)
    with pytest.raises(ConfigError, match="pooling: cls is no token of this tower; choose eot or mean"):
        TextEncoder(_pretrained(hub["clip"], pooling="cls"), 20, 0)


@pytest.mark.parametrize("name", ["clip", "siglip", "dinov2"])
@pytest.mark.parametrize("freeze", [False, True])
def test_every_way_of_pooling_reaches_every_trainable_weight_of_an_image_tower(
    hub: dict[str, str], name: str, freeze: bool
) -> None:
    ways = ({"use_perceiver": True}, {"use_attention_pooling": True}, {"pooling": "mean"}, {"pooling": "auto"})
    for way, projection in itertools.product(ways, ("mlp", "linear", "none")):
        config = _pretrained(hub[name], projection=projection, freeze=freeze, **way)
        assert _gradients(VisionEncoder(config, 32), IMAGES) == []


@pytest.mark.parametrize("name", ["clip", "siglip", "bert"])
@pytest.mark.parametrize("recompute", [False, True])
def test_every_way_of_pooling_reaches_every_trainable_weight_of_a_text_tower(
    hub: dict[str, str], name: str, recompute: bool
) -> None:
    inputs = (torch.randint(1, 15, (2, 16)), torch.ones(2, 16).bool()) if name == "siglip" else (IDS, MASK)
    for way in ({"use_attention_pooling": True}, {"pooling": "mean"}, {"pooling": "auto"}):
        config = _pretrained(hub[name], activation_checkpointing=recompute, **way)
        assert _gradients(TextEncoder(config, 20, 0), *inputs) == []


@pytest.mark.parametrize(("name", "shape"), [("whisper", (100, 8)), ("ast", (40, 20))])
def test_every_way_of_pooling_reaches_every_trainable_weight_of_an_audio_tower(
    hub: dict[str, str], name: str, shape: tuple[int, int]
) -> None:
    audio, mask = torch.randn(2, *shape), torch.arange(shape[0]) < torch.tensor([[shape[0]], [9]])
    for way in ({"use_perceiver": True}, {"use_attention_pooling": True}, {"pooling": "mean"}, {"pooling": "auto"}):
        encoder = AudioEncoder(_pretrained(hub[name], **way), num_mels=128, max_frames=1000)
        assert encoder(audio, mask).pooled.shape == (2, 12)
        assert _gradients(encoder, audio, mask) == []


def test_activation_checkpointing_runs_each_block_again_unless_frozen(hub: dict[str, str]) -> None:
    for changes, runs in (({}, 1), ({"activation_checkpointing": True}, 2)):
        encoder = VisionEncoder(_pretrained(hub["clip"], **changes), 32)
        count = []
        encoder.backbone.model.encoder.layers[0].mlp.register_forward_pre_hook(lambda *_, seen=count: seen.append(1))
        assert _gradients(encoder, IMAGES) == []
        assert len(count) == runs
    frozen = VisionEncoder(_pretrained(hub["clip"], activation_checkpointing=True, freeze=True), 32)
    assert not any(getattr(module, "gradient_checkpointing", False) for module in frozen.backbone.modules())


def test_a_frozen_tower_stays_bit_identical_and_keeps_no_graph(hub: dict[str, str]) -> None:
    encoder = VisionEncoder(_pretrained(hub["clip"], freeze=True), 32).train()
    assert not any(module.training for module in encoder.backbone.modules())
    assert encoder.backbone(IMAGES).tokens.requires_grad is False
    before = {name: tensor.clone() for name, tensor in encoder.backbone.state_dict().items()}
    optimizer = torch.optim.AdamW((p for p in encoder.parameters() if p.requires_grad), lr=0.1, weight_decay=0.1)
    encoder(IMAGES).pooled.square().sum().backward()
    optimizer.step()
    assert all(torch.equal(before[name], tensor) for name, tensor in encoder.backbone.state_dict().items())
    assert not any(name.startswith("backbone") for name, p in encoder.named_parameters() if p.requires_grad)


def test_the_head_of_a_frozen_tower_is_frozen_with_it(hub: dict[str, str]) -> None:
    config = _pretrained(hub["clip"], projection="none", embed_dim=20, freeze=True)
    assert not any(p.requires_grad for p in VisionEncoder(config, 32).parameters())
    assert all(p.requires_grad for p in VisionEncoder(replace(config, embed_dim=12), 32).head.parameters())


def test_unknown_backbones_are_refused_by_their_key(tmp_path: Path) -> None:
    for build, key in (
        (lambda c: VisionEncoder(c, 32), "vision_encoder"),
        (lambda c: TextEncoder(c, 20, 0), "text_encoder"),
        (lambda c: AudioEncoder(c, num_mels=8, max_frames=8), "audio_encoder"),
    ):
        with pytest.raises(ConfigError, match=rf"^{key}\.backbone: .* there is no such folder"):
            build(_pretrained(str(tmp_path / "none")))


def test_runs_of_before_know_these_names() -> None:
    """Renaming an attribute would leave the weights of every finished run without a home."""
    own = ("query", "attention.query.weight", "attention.key_value.bias", "attention.out.weight")
    pooled = VisionEncoder(replace(PERCEIVER, use_perceiver=False, use_attention_pooling=True), 32).state_dict()
    assert {f"attention_pooling.{name}" for name in own} < pooled.keys()
    assert {name.partition(".")[0] for name in pooled} == {"backbone", "projection", "attention_pooling", "head"}
    layer = ("norm_tokens.weight", "norm_latents.bias", "attention.query.weight", "up.weight", "down.weight")
    compressed = VisionEncoder(PERCEIVER, 32).state_dict().keys()
    assert {
        "perceiver.latents",
        "perceiver.norm.weight",
        *(f"perceiver.layers.1.{name}" for name in layer),
    } < compressed
