"""The ViT: patches as a convolution makes them, sizes, summary alone, what its options do."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from impresa.config.experiment import EncoderConfig, MemoryConfig
from impresa.encoders.vision import PatchEmbedding, VisionTransformer
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


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="patch_size: 4 does not divide image_size 14; change either"):
        VisionTransformer(small(), 14)
    with pytest.raises(DataError, match=r"image: shape \(3, 16, 16\) does not fit the tower; resize to \(3, 12, 12\)"):
        VisionTransformer(small(), S)(torch.randn(B, 3, 16, 16))


def test_embeddings_start_as_clips() -> None:
    model = VisionTransformer(small(dim=256, patch_size=1), S)
    assert model.positions.std().item() == pytest.approx(256**-0.5, rel=0.05)
    assert model.cls.std().item() == pytest.approx(256**-0.5, rel=0.2)
