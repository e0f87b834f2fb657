"""Rows of a batch that is spread over processes: their layout, and all of them gathered in each process.

A loss over a gathered batch is the mean over the rows of all processes. Each process computes the part of its own rows
and scales it by `RowLayout.weight`, so that the mean over processes, which is what DistributedDataParallel takes of
the gradients, is the loss and the gradient of one process with the whole batch. Processes may hold different numbers
of rows (the last batch of an epoch), even none.

Without gathering each process contrasts its rows with its own rows only: fewer negatives, and training weights each
process's mean by its rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed


@dataclass(frozen=True)
class RowLayout:
    """How the rows of one batch lie over processes, in the order of the ranks."""

    counts: tuple[int, ...]
    """Rows of each process; a single entry for a batch that is not gathered."""
    rank: int = 0
    """Position of this process in `counts`."""

    @property
    def total(self) -> int:
        """Rows of all processes."""
        return sum(self.counts)

    @property
    def offset(self) -> int:
        """Position of this process's first row among all rows."""
        return sum(self.counts[: self.rank])

    @property
    def weight(self) -> float:
        """Factor of the sum over this process's rows: processes / rows of all of them."""
        return len(self.counts) / max(self.total, 1)


def row_layout(x: Tensor, *, gather: bool) -> RowLayout:
    """Layout of a batch of which this process holds `x` (rows, ...).

    With `gather` under torch.distributed it is a collective call: every process must make it. Without torch.distributed
    `gather` changes nothing.
    """
    if not (gather and distributed.is_available() and distributed.is_initialized()):
        return RowLayout((len(x),))
    own = torch.tensor(len(x), device=x.device)
    counts = [torch.empty_like(own) for _ in range(distributed.get_world_size())]
    distributed.all_gather(counts, own)
    return RowLayout(tuple(int(count) for count in counts), distributed.get_rank())


def gather_rows(x: Tensor, layout: RowLayout) -> Tensor:
    """The rows of all processes, in the order of the ranks, with gradients.

    A row's gradient is the sum of what all processes send back to it; every process must run the backward pass.

    Args:
        x: (this process's rows, ...).
        layout: from `row_layout`.

    Returns:
        (rows of all processes, ...); `x` itself when there is one process.
    """
    if len(layout.counts) == 1:
        return x
    gathered: Tensor = _GatherRows.apply(x, layout)
    return gathered


def from_all(x: Tensor, layout: RowLayout) -> list[Tensor]:
    """`x` of each process, in the order of the ranks, without gradient; its shape is the same everywhere."""
    if len(layout.counts) == 1:
        return [x]
    parts = [torch.empty_like(x) for _ in layout.counts]
    distributed.all_gather(parts, x)
    return parts


def of_first(x: Tensor) -> Tensor:
    """`x` of the first process, without gradient; its shape is the same everywhere."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return x
    first = x.clone()
    distributed.broadcast(first, src=0)
    return first


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layout: RowLayout) -> Tensor:
        ctx.layout = layout
        padded = x.new_zeros(max(layout.counts), *x.shape[1:])  # the collective wants equal shapes
        padded[: len(x)] = x
        parts = from_all(padded, layout)
        return torch.cat([part[:count] for part, count in zip(parts, layout.counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        layout: RowLayout = ctx.layout
        total = gradient.contiguous().clone()
        distributed.all_reduce(total)
        return total[layout.offset : layout.offset + layout.counts[layout.rank]], None
