"""Projections act on each token by itself."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import nn

from impresa.encoders.tower import build_projection


@pytest.mark.parametrize(("kind", "num_linears"), [("mlp", 2), ("linear", 1), ("none", 0)])
def test_projection(kind: Literal["mlp", "linear", "none"], num_linears: int) -> None:
    projection, tokens = build_projection(kind, 16), torch.randn(2, 5, 16)
    assert sum(isinstance(module, nn.Linear) for module in projection.modules()) == num_linears
    out = projection(tokens)
    assert out.shape == tokens.shape
    torch.testing.assert_close(projection(tokens[:, 2]), out[:, 2])
    assert torch.equal(out, tokens) == (kind == "none")


def test_an_mlp_is_not_linear() -> None:
    mlp, x = build_projection("mlp", 16), torch.randn(1, 16)
    assert not torch.allclose(mlp(2 * x) - mlp(torch.zeros_like(x)), 2 * (mlp(x) - mlp(torch.zeros_like(x))), atol=1e-3)
