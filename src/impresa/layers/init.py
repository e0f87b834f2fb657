"""How weights start."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def init_linear(linear: nn.Linear, std: float) -> nn.Linear:
    """Give a linear layer normal weights of standard deviation `std` and a zero bias, and return it."""
    nn.init.normal_(linear.weight, std=std)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
    return linear


def drawn(*shape: int, std: float) -> Tensor:
    """Normal numbers of standard deviation `std`."""
    return torch.empty(shape).normal_().mul_(std)  # in place, which costs nothing in an outline
