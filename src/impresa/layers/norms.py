"""Normalisation without weights, and its number format."""

from __future__ import annotations

import torch
from torch import Tensor

_EPS = 1e-6


def at_least_float32(x: Tensor) -> Tensor:
    """`x` itself, or in float32 if its type has fewer bits."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def rms_normalise(x: Tensor) -> Tensor:
    """(..., D) -> (..., D) with a root mean square of one (Zhang and Sennrich 2019, arXiv:1910.07467), computed in
    float32; zeros stay zeros."""
    # On a CPU, PyTorch's own rms_norm takes twice as long.
    dtype = torch.promote_types(x.dtype, torch.float32)
    mean_square = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=dtype).square() / x.shape[-1]
    return x * torch.rsqrt(mean_square + _EPS).to(x.dtype)
