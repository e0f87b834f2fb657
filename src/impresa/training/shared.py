"""Tensors of which each process has a part (`trainer.strategy: fsdp`), beside those that each has whole.

They are torch's `DTensor`, known by its method here: a run that shares nothing need not wait for its import.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def is_shared(tensor: Tensor) -> bool:
    """True for a tensor of which this process has a part."""
    return hasattr(tensor, "to_local")


def part_of(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process has, without its graph and in the same memory."""
    own: Any = tensor.detach()
    return own.to_local() if is_shared(own) else own


def gathered(tensor: Tensor) -> Tensor:
    """All of a tensor, without its graph; every process asks for it."""
    own: Any = tensor.detach()
    return own.full_tensor() if is_shared(own) else own


def shared_like(tensor: Tensor, like: Any) -> Tensor:
    """A tensor that every process has whole, shared out as `like` is, on its device; itself where there is nothing to
    share out."""
    if is_shared(tensor) or not is_shared(like):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    part = distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
    return part.clone()  # a view would hold all of the memory


def room_for(outline: Tensor, like: Any) -> Tensor:
    """Uninitialised memory for a tensor of this outline, on the device "meta": for the part of this process where
    `like` has the same shape and is shared out, else for all of it, on the CPU."""
    if is_shared(like) and like.shape == outline.shape:
        return torch.empty_like(like.detach(), dtype=outline.dtype)
    return torch.empty(outline.shape, dtype=outline.dtype)
