"""How weights start."""

from __future__ import annotations

from torch import nn


def init_linear(linear: nn.Linear, std: float) -> nn.Linear:
    """Give a linear layer normal weights of standard deviation `std` and a zero bias, and return it."""
    nn.init.normal_(linear.weight, std=std)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
    return linear
