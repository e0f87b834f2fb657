"""Attention against PyTorch's own, the heads that fit a width, and the activation of CLIP."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from impresa.errors import ConfigError
from impresa.layers.attention import Attention, fitting_heads
from impresa.layers.mlp import QuickGELU

B, N, D, H = 3, 7, 16, 4


def test_attention_equals_torchs_own() -> None:
    ours = Attention(D, H).double()
    reference = nn.MultiheadAttention(D, H, batch_first=True).double()
    with torch.no_grad():
        reference.in_proj_weight.copy_(torch.cat([ours.query.weight, ours.key_value.weight]))
        reference.in_proj_bias.copy_(torch.cat([ours.query.bias.normal_(), ours.key_value.bias.normal_()]))
        reference.out_proj.load_state_dict(ours.out.state_dict())
    queries, context = torch.randn(B, 2, D).double(), torch.randn(B, N, D).double()
    mask = torch.rand(B, N) < 0.6
    mask[:, 0] = True
    torch.testing.assert_close(
        ours(queries, context, mask=mask[:, None, None, :]),
        reference(queries, context, context, key_padding_mask=~mask)[0],
    )


def test_queries_of_the_whole_batch_need_to_be_given_only_once() -> None:
    attention, queries, context = Attention(D, H), torch.randn(1, 2, D), torch.randn(B, N, D)
    torch.testing.assert_close(attention(queries, context), attention(queries.expand(B, -1, -1), context))


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(ConfigError, match="num_heads: 5 does not divide the width 16; choose a divisor"):
        Attention(D, 5)


@pytest.mark.parametrize(("dim", "num_heads", "expected"), [(64, 8, 8), (512, 12, 8), (9, 8, 3), (7, 4, 1)])
def test_fitting_heads(dim: int, num_heads: int, expected: int) -> None:
    assert fitting_heads(dim, num_heads) == expected


def test_quick_gelu_is_its_formula() -> None:
    x = torch.linspace(-4, 4, 9)
    torch.testing.assert_close(QuickGELU()(x), x / (1 + torch.exp(-1.702 * x)))
