"""Recorded attention weights: right, and without a trace on the model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import tiny_hub
from impresa.decoders.causal_network import AttentionInputs, CausalAttention
from impresa.decoders.context import CausalContext
from impresa.encoders.pretrained_vision import load_vision_backbone
from impresa.layers.attention import Attention
from impresa.layers.recording import recording_attention, weights_within

MASK = torch.tensor([[True, True, False, True, True], [False, True, True, True, False]])


def attention() -> Attention:
    torch.manual_seed(0)
    return Attention(8, 2, dropout=0.5).eval()


def read_by_hand(model: Attention, weights: Tensor, context: Tensor) -> Tensor:
    values = model.key_value(context).chunk(2, dim=-1)[1].unflatten(-1, (model.num_heads, -1)).transpose(1, 2)
    return model.out((weights @ values).transpose(1, 2).flatten(2))


@pytest.mark.parametrize(
    ("mask", "is_causal"), [(None, False), (None, True), (MASK[:, None, None, :], False)], ids=("all", "causal", "mask")
)
def test_weights_times_values_are_what_attention_reads(mask: Tensor | None, is_causal: bool) -> None:
    model, context = attention(), torch.randn(2, 5, 8)
    with torch.no_grad(), recording_attention(model) as recorded:
        read = model(context, context, mask=mask, is_causal=is_causal)
    (weights,) = recorded[model]
    assert weights.shape == (2, 2, 5, 5)
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(2, 2, 5))
    torch.testing.assert_close(read_by_hand(model, weights, context), read, atol=1e-6, rtol=0)
    if mask is not None:
        assert not weights.masked_select(~mask).any()
    if is_causal:
        assert not weights.triu(1).any()


@pytest.mark.parametrize("mask", [torch.ones(2, 5, dtype=torch.bool), MASK], ids=("all", "padded"))
def test_the_decoders_weights_too(mask: Tensor) -> None:
    torch.manual_seed(0)
    model, x = CausalAttention(8, 2, damping=1.0), torch.randn(2, 5, 8)
    inputs = AttentionInputs.of(CausalContext.of(mask), 4)
    with torch.no_grad(), recording_attention(model) as recorded:
        read = model(x, inputs, 0)
        values = model.value(x).unflatten(-1, (2, -1)).transpose(1, 2)
        by_hand = model.out((recorded[model][0] @ values).transpose(1, 2).flatten(2))
    torch.testing.assert_close(by_hand, read, atol=1e-6, rtol=0)
    assert not recorded[model][0].triu(1).any()


def test_recording_changes_no_bit_and_leaves_nothing_behind() -> None:
    model, context = nn.ModuleList([attention(), attention()]), torch.randn(2, 5, 8)
    plain = model[0](context, context)
    with recording_attention(model) as recorded:
        assert torch.equal(model[0](context, context), plain)
        assert torch.equal(model[0](context, context), plain)
    assert torch.equal(model[0](context, context), plain)
    assert len(recorded[model[0]]) == len(weights_within(recorded, model)) == 2
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("kind", ["clip", "siglip", "dinov2"])
def test_towers_of_transformers_give_the_weights_of_each_block(kind: str, tmp_path: Path) -> None:
    backbone = load_vision_backbone(str(getattr(tiny_hub, kind)(tmp_path)), 32).eval()
    image = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        plain = backbone(image).tokens
        before = backbone.model.config._attn_implementation
        with recording_attention(backbone) as recorded:
            torch.testing.assert_close(backbone(image).tokens, plain, atol=1e-4, rtol=1e-4)
    assert backbone.model.config._attn_implementation == before == "sdpa"
    length = 16 + (kind != "siglip")
    for block in backbone.blocks:
        (weights,) = weights_within(recorded, block)
        assert weights.shape == (2, 2, length, length)
        torch.testing.assert_close(weights.sum(dim=-1), torch.ones(2, 2, length))
    if backbone.pooler is not None:  # its own pooling is recorded as the mean of the heads
        assert weights_within(recorded, backbone.pooler)[0].shape == (2, 1, 1, 16)
