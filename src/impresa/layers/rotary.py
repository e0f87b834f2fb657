"""Rotary positions (Su et al. 2021, arXiv:2104.09864).

Letters of shapes: B batch, S positions, H heads, d width of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor

from impresa.layers.norms import at_least_float32

_BASE = 10_000.0


def rotation_of(position_ids: Tensor, head_dim: int) -> Tensor:
    """The turn of each pair of features at each position: (B, S) int64 -> (B, S, 1, d / 2) complex64 of modulus one."""
    exponents = torch.arange(0, head_dim, 2, device=position_ids.device, dtype=torch.float32) / head_dim
    angles = position_ids[:, :, None, None] * _BASE**-exponents
    return torch.polar(torch.ones_like(angles), angles)


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Turn neighbouring features of x (B, S, H, d) as pairs: one complex product, the fastest way."""
    pairs = torch.view_as_complex(at_least_float32(x).unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rotation).flatten(-2).to(x.dtype)
