"""The convolutional stem and backbone: shapes, the place of a cell, how depth is shared, no look at other images."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from impresa.config.encoder import EncoderConfig
from impresa.encoders.convolution import ConvNet, ConvStem, Stage, group_norm, widths_of
from impresa.encoders.vision import VisionEncoder, VisionTransformer
from impresa.errors import ConfigError, DataError

B, S, D, E = 3, 16, 32, 8
NET = EncoderConfig(backbone="convnet", dim=D, depth=3, patch_size=4, embed_dim=E)
STEM = EncoderConfig(dim=D, depth=1, num_heads=2, patch_size=4, embed_dim=E, stem="conv")
VARIANTS = {
    "plain": NET,
    "one halving": replace(NET, patch_size=2),
    "one cell": replace(NET, patch_size=16),
    "fewer blocks than stages": replace(NET, patch_size=16, depth=1),
    "narrow": replace(NET, dim=6),
    "dropout": replace(NET, drop_rate=0.1),
    "checkpointing": replace(NET, activation_checkpointing=True),
    "attention pooling": replace(NET, use_attention_pooling=True, num_heads=2),
    "perceiver": replace(NET, use_perceiver=True, perceiver_num_latents=4, perceiver_num_heads=2),
    "no projection": replace(NET, projection="none"),
}


def stages(model: ConvNet) -> list[Stage]:
    return [stage for stage in model.stages if isinstance(stage, Stage)]


def images() -> torch.Tensor:
    return torch.randn(B, 3, S, S)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_choice_trains_every_parameter(name: str) -> None:
    model = VisionEncoder(VARIANTS[name], S)
    output = model(images(), return_tokens=True)
    assert output.pooled.shape == (B, E)
    assert output.mask is output.memory is None
    num_tokens = 4 if name == "perceiver" else (S // VARIANTS[name].patch_size) ** 2
    assert output.tokens.shape == (B, num_tokens, VARIANTS[name].dim)
    (output.pooled * torch.randn_like(output.pooled)).sum().backward()
    for parameter, value in model.named_parameters():
        assert value.grad is not None, parameter
        assert value.grad.isfinite().all(), parameter
        assert value.grad.abs().max() > 1e-7, parameter


@pytest.mark.parametrize("model", [VisionEncoder(NET, S), VisionEncoder(STEM, S)], ids=["net", "stem"])
def test_an_embedding_never_depends_on_its_batch(model: VisionEncoder) -> None:
    image = images()
    for mode in (True, False):  # no dropout here, so in training too
        model.train(mode)
        together = model(image).pooled
        torch.testing.assert_close(torch.cat([model(one[None]).pooled for one in image]), together)


def test_tokens_are_cells_in_reading_order() -> None:
    """Without blocks and norms a cell is seen by its own token and by the next ones to the right and below alone."""
    model = ConvNet(replace(NET, depth=0), S)
    for stage in stages(model):
        stage.halving[1] = nn.Identity()
    image = images()[:1]
    for row, column in ((0, 2), (2, 0), (1, 2)):
        changed = image.clone()
        changed[:, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 1.0
        moved = (model(changed).tokens - model(image).tokens).abs().amax(dim=-1).view(4, 4).nonzero().tolist()
        assert moved == [[row + i, column + j] for i in (0, 1) for j in (0, 1)]


def test_the_stem_gives_patch_embeddings_in_reading_order_that_see_beyond_their_patch() -> None:
    stem, image = ConvStem(STEM), images()[:1]
    changed = image.clone()
    changed[:, :, 4:8, 8:12] += 1.0  # patch 6 of 16
    moved = (stem(changed) - stem(image)).norm(dim=-1).squeeze(0)
    assert stem(image).shape == (1, 16, D)
    assert int(moved.argmax()) == 6
    assert moved[5] > 1e-3


def test_only_the_stem_is_another() -> None:
    conv, patch = VisionTransformer(STEM, S), VisionTransformer(replace(STEM, stem="patch"), S)
    ours, theirs = ({n for n in m.state_dict() if "patch_embedding" not in n} for m in (conv, patch))
    assert ours == theirs
    assert isinstance(conv.patch_embedding, ConvStem)
    assert conv(images()).tokens.shape == patch(images()).tokens.shape


@pytest.mark.parametrize(
    ("patch_size", "depth", "blocks"),
    [(16, 12, [0, 4, 4, 4]), (16, 4, [0, 1, 1, 2]), (16, 1, [0, 0, 0, 1]), (4, 3, [0, 3]), (2, 3, [3])],
)
def test_depth_is_shared_among_the_stages_but_the_first(patch_size: int, depth: int, blocks: list[int]) -> None:
    model = ConvNet(replace(NET, patch_size=patch_size, depth=depth), S)
    assert [len(stage.blocks) for stage in stages(model)] == blocks
    assert len(model.blocks) == blocks[-1]


def test_widths_double_up_to_dim() -> None:
    assert widths_of(replace(NET, dim=512, patch_size=16)) == [64, 128, 256, 512]
    assert widths_of(replace(NET, dim=64, patch_size=32)) == [16, 16, 16, 32, 64]
    assert widths_of(replace(NET, dim=6)) == [6, 6]


@pytest.mark.parametrize("dim", [1, 7, 16, 48, 100, 512])
def test_groups_are_never_single_channels(dim: int) -> None:
    assert dim // group_norm(dim).num_groups >= min(dim, 8)


def test_activations_start_at_one_scale_whatever_the_depth() -> None:
    for depth in (3, 24):
        model = ConvNet(replace(NET, depth=depth, dim=64), S)
        maps = torch.randn(8, 3, S, S)
        for stage in stages(model):
            maps = stage(maps)
        assert 0.5 < maps.std() < 2.5


def test_recomputed_gradients_are_the_same() -> None:
    plain, recomputed = VisionEncoder(NET, S), VisionEncoder(replace(NET, activation_checkpointing=True), S)
    recomputed.load_state_dict(plain.state_dict())
    image = images()
    for model in (plain, recomputed):
        model(image).pooled.square().sum().backward()
    for one, other in zip(plain.parameters(), recomputed.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="patch_size: 4 does not divide image_size 14; change either"):
        ConvNet(NET, 14)
    with pytest.raises(ConfigError, match="patch_size: 12 is no power of two"):
        ConvStem(replace(STEM, patch_size=12))
    with pytest.raises(DataError, match=r"image: shape \(3, 32, 32\) does not fit the tower; resize to \(3, 16, 16\)"):
        ConvNet(NET, S)(torch.randn(B, 3, 32, 32))
