"""Sequences laid end to end: each sees itself alone, by every way of computing it."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from impresa.layers.end_to_end import EndToEnd

H, d = 2, 4
LENGTHS = {
    "one, full and equal": (3, 1, 8, 3, 5),
    "all full": (8, 8, 8),
    "single tokens": (1, 1),
    "one alone": (4,),
    "an empty one": (2, 0, 8, 2),
}


def mask_of(lengths: tuple[int, ...]) -> torch.Tensor:
    return torch.arange(8) < torch.tensor(lengths)[:, None]


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_tokens_come_back_to_their_places(lengths: tuple[int, ...]) -> None:
    mask = mask_of(lengths)
    layout, x = EndToEnd.of(mask), torch.randn(len(lengths), 8, 3)
    laid = layout.laid(x)
    assert laid.shape == (sum(lengths), 3)
    assert list(layout.lengths) == sorted(lengths, reverse=True)
    torch.testing.assert_close(layout.padded(laid), x * mask[..., None], rtol=0, atol=0)
    torch.testing.assert_close(layout.sums(laid), (x * mask[..., None]).sum(dim=1))
    for i, length in enumerate(lengths):
        assert torch.equal(laid[layout.start[i] : layout.start[i] + length], x[i, :length])


@pytest.mark.parametrize("way", ["_by_length", "_over_padding"])
@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_attention_is_that_of_each_sequence_alone(way: str, is_causal: bool, lengths: tuple[int, ...]) -> None:
    layout = EndToEnd.of(mask_of(lengths))
    x = torch.randn(sum(lengths), 3, H, d, requires_grad=True)
    found = getattr(layout, way)(*x.unbind(dim=1), is_causal, 0.0)
    expected = torch.zeros_like(found)
    for start, length in zip(layout.start.tolist(), lengths, strict=True):
        own = x[start : start + length].permute(1, 2, 0, 3).unsqueeze(1)  # (3, 1, H, T, d)
        read = F.scaled_dot_product_attention(*own, is_causal=is_causal)
        expected[start : start + length] = read[0].transpose(0, 1)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    weight = torch.randn_like(found)
    (gradient,) = torch.autograd.grad((found * weight).sum(), x, retain_graph=True)
    (own_gradient,) = torch.autograd.grad((expected * weight).sum(), x)
    torch.testing.assert_close(gradient, own_gradient, rtol=1e-5, atol=1e-6)


def test_dropout_of_attention_keeps_the_mean() -> None:
    layout, ones = EndToEnd.of(mask_of((8, 3))), torch.ones(11, H, d)
    torch.manual_seed(0)
    reads = torch.stack([layout.attention(ones, ones, ones, is_causal=True, dropout=0.5) for _ in range(300)])
    assert reads.std(dim=0).max() > 0.1
    torch.testing.assert_close(reads.mean(), torch.tensor(1.0), rtol=0.05, atol=0)
