"""What tokens pass between the backbone and the pooling when there is no Perceiver."""

from __future__ import annotations

from typing import Literal

from torch import nn

from impresa.encoders.transformer import MLP, init_linear


def build_projection(kind: Literal["mlp", "linear", "none"], dim: int) -> nn.Module:
    """A map of each token by itself, (..., D) -> (..., D): `mlp` has one hidden layer of width D."""
    if kind == "mlp":
        return MLP(dim, dim)
    if kind == "linear":
        linear = nn.Linear(dim, dim)
        init_linear(linear, std=dim**-0.5)
        return linear
    return nn.Identity()
