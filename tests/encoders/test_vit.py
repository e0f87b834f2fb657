"""The ViT: patches as a convolution makes them, sizes, summary alone, what its options do."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from impresa.config.encoder import EncoderConfig
from impresa.config.types import MemoryConfig
from impresa.encoders.vision import PatchDropout, PatchEmbedding, VisionTransformer
from impresa.errors import ConfigError, DataError

B, S, D, M = 2, 12, 16, 3


def small(**changes: object) -> EncoderConfig:
    return EncoderConfig(**{"dim": D, "depth": 2, "num_heads": 4, "patch_size": 4, **changes})


def with_memory(**changes: object) -> EncoderConfig:
    return small(memory=MemoryConfig(**{"enabled": True, "dim": D, "num_memory_tokens": M, **changes}))


@pytest.mark.parametrize("bias", [False, True])
def test_patch_embedding_equals_the_convolution_of_the_same_weight(bias: bool) -> None:
    patches, image = PatchEmbedding(4, D, bias=bias), torch.randn(B, 3, S, S)
    convolution = nn.Conv2d(3, D, kernel_size=4, stride=4, bias=bias)
    with torch.no_grad():
        convolution.weight.copy_(patches.weight.view_as(convolution.weight))
        if bias:
            convolution.bias.copy_(patches.bias)
    torch.testing.assert_close(patches(image), convolution(image).flatten(2).transpose(1, 2))


def test_shapes() -> None:
    features = VisionTransformer(with_memory(), S)(torch.randn(B, 3, S, S))
    assert features.summary.shape == (B, D)
    assert features.tokens.shape == (B, 9, D)
    assert features.memory.shape == (B, M, D)
    assert VisionTransformer(small(), S)(torch.randn(B, 3, S, S)).memory is None


@pytest.mark.parametrize("config", [small(), with_memory(), with_memory(memory_position="append")])
def test_the_summary_alone_equals_the_summary_beside_the_tokens(config: EncoderConfig) -> None:
    model, image = VisionTransformer(config, S), torch.randn(B, 3, S, S)
    alone = model(image, summary_only=True)
    assert alone.tokens is None
    assert alone.memory is None
    torch.testing.assert_close(alone.summary, model(image).summary)


def test_the_place_of_memory_only_orders_the_sequence() -> None:
    """Memory has no position embedding, so both places give the same features, patch for patch and slot for slot."""
    first, image = VisionTransformer(with_memory(), S), torch.randn(B, 3, S, S)
    last = VisionTransformer(with_memory(memory_position="append"), S)
    last.load_state_dict(first.state_dict())
    a, b = first(image), last(image)
    torch.testing.assert_close((a.summary, a.tokens, a.memory), (b.summary, b.tokens, b.memory), rtol=1e-4, atol=1e-5)
    sequences = []
    for model in (first, last):
        model.transformer.register_forward_pre_hook(lambda _, inputs: sequences.append(inputs[0]))
        model(image)
    torch.testing.assert_close(sequences[0][:, 1 : 1 + M], sequences[1][:, -M:])
    torch.testing.assert_close(sequences[0][:, 0], sequences[1][:, 0])


def test_memory_reads_the_patches_as_they_enter_the_blocks_without_cls() -> None:
    model, seen = VisionTransformer(with_memory(memory_position="append"), S), []
    model.memory.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model.transformer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(torch.randn(B, 3, S, S))
    torch.testing.assert_close(seen[0], seen[1][:, 1:10], rtol=0, atol=0)


def test_options_of_clip() -> None:
    plain, clip = VisionTransformer(small(), S), VisionTransformer(small(pre_norm=True, patch_bias=False), S)
    assert plain.patch_embedding.bias is not None
    assert clip.patch_embedding.bias is None
    assert isinstance(clip.pre_norm, nn.LayerNorm)
    entering = []
    clip.transformer.register_forward_pre_hook(lambda _, inputs: entering.append(inputs[0]))
    clip(torch.randn(B, 3, S, S))
    torch.testing.assert_close(entering[0].mean(-1), torch.zeros(B, 10), atol=1e-5, rtol=0)


def test_drop_rate_acts_on_the_embeddings() -> None:
    model, entering = VisionTransformer(small(drop_rate=0.5), S), []
    model.transformer.register_forward_pre_hook(lambda _, inputs: entering.append(inputs[0]))
    model(torch.randn(8, 3, S, S))
    assert 0.4 < (entering[0] == 0).float().mean() < 0.6


@pytest.mark.parametrize("config", [small(), with_memory(), with_memory(memory_position="append")])
def test_patch_dropout_takes_patches_out_of_the_sequence_in_training_alone(config: EncoderConfig) -> None:
    """CLS, memory tokens and the features of what stays are those of a ViT without it that sees the same patches."""
    model = VisionTransformer(replace(config, patch_dropout=0.5), S)
    plain = VisionTransformer(config, S)
    plain.load_state_dict(model.state_dict())
    image, entering = torch.randn(8, 3, S, S), []
    model.transformer.register_forward_pre_hook(lambda _, inputs: entering.append(inputs[0]))
    kept, summary = model(image), model(image, summary_only=True).summary
    num_memory = M if config.memory.enabled else 0
    assert [len(x[0]) for x in entering] == [1 + num_memory + 4] * 2
    assert kept.tokens.shape == (8, 4, D)
    assert kept.memory is None or kept.memory.shape == (8, M, D)
    assert not torch.allclose(kept.summary, summary, atol=1e-4)  # other draws
    whole = plain(image)
    assert not torch.allclose(kept.summary, whole.summary, atol=1e-4)
    torch.testing.assert_close(model.eval()(image).tokens, plain.eval()(image).tokens, rtol=0, atol=0)


def test_patch_dropout_draws_for_each_image_and_keeps_the_reading_order() -> None:
    """Draws come from torch's generator, which a training step seeds: the same step repeats them."""
    x = torch.arange(10.0).expand(64, 10).unsqueeze(-1)  # CLS is 0, patch i is i
    draws = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        draws.append(PatchDropout(0.6)(x).squeeze(-1))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert draws[0].shape == (64, 1 + 3)  # 3.6 of 9 patches, rounded down
    assert (draws[0][:, 0] == 0).all()
    assert (draws[0].diff(dim=1) > 0).all()
    assert len(draws[0].unique(dim=0)) > 32
    assert draws[0][:, 1:].unique().tolist() == list(range(1, 10))


@pytest.mark.parametrize(("rate", "num_kept"), [(0.0, 100), (0.001, 99), (0.42, 58), (0.9, 10), (0.949, 5)])
def test_patch_dropout_leaves_its_share(rate: float, num_kept: int) -> None:
    assert PatchDropout(rate).num_kept(100) == num_kept
    assert PatchDropout(0.9).num_kept(1) == 1


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="patch_size: 4 does not divide image_size 14; change either"):
        VisionTransformer(small(), 14)
    with pytest.raises(DataError, match=r"image: shape \(3, 16, 16\) does not fit the tower; resize to \(3, 12, 12\)"):
        VisionTransformer(small(), S)(torch.randn(B, 3, 16, 16))


def test_embeddings_start_as_clips() -> None:
    model = VisionTransformer(small(dim=256, patch_size=1), S)
    assert model.positions.std().item() == pytest.approx(256**-0.5, rel=0.05)
    assert model.cls.std().item() == pytest.approx(256**-0.5, rel=0.2)
