"""Contrastive objectives that read the similarity matrix in blocks of rows: once for the value, once for the gradient.

They know nothing of embeddings. `impresa.losses.matryoshka` hands them the logits of every prefix, block by block, and
never needs more than a block of them at a time.

Letters of shapes: K prefixes, n rows (those of this process), m columns (those of all processes), r rows of a block.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from impresa.losses.gather import RowLayout, from_all


@dataclass(frozen=True)
class Block:
    """Some rows of the similarity matrix, and where the right answers are in them."""

    rows: slice
    """Which of the n rows."""
    right: tuple[Tensor, Tensor]
    """Row within the block and column of each right answer."""
    shares: Tensor
    """For each right answer, one over the number of them in its row."""


@dataclass(frozen=True)
class Targets:
    """Which rows and columns belong together."""

    layout: RowLayout
    """How rows lie over processes."""
    row_labels: Tensor | None
    """(n,); None: row i belongs to the column of the same sample only."""
    column_labels: Tensor | None
    """(m,); equal labels belong together."""

    def blocks(self, like: Tensor, size: int | None) -> Iterator[Block]:
        """Blocks of at most `size` rows (None: all) that cover the rows of `like`; none if it has no rows."""
        num_rows = len(like)
        step = size or max(num_rows, 1)
        for start in range(0, num_rows, step):
            rows = slice(start, min(start + step, num_rows))
            right, shares = self._right_answers(rows, like)
            yield Block(rows, right, shares)

    def _right_answers(self, rows: slice, like: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
        if self.row_labels is None or self.column_labels is None:
            row = torch.arange(rows.stop - rows.start, device=like.device)
            return (row, row + (self.layout.offset + rows.start)), like.new_ones(len(row))
        same = self.row_labels[rows, None] == self.column_labels
        row, column = same.nonzero(as_tuple=True)
        return (row, column), same.sum(dim=1)[row].to(like.dtype).reciprocal()


class Objective(Protocol):
    """A loss on the logits of K prefixes. `scratch` is a tensor of the shape of `x` that may be overwritten."""

    unit: float
    """What the scaled cosines are multiplied by to be the logits `x` of this objective."""
    factor: float
    """What `sums` is multiplied by to be a sum of nats over rows."""

    def observe(self, k: int, block: Block, x: Tensor, scratch: Tensor) -> None:
        """Take in the logits `x` (r, m) of prefix k in a block."""

    def sums(self, layout: RowLayout) -> Tensor:
        """(K,) losses summed over the rows of this process, once all blocks were observed."""

    def gradient(self, k: int, block: Block, x: Tensor, out: Tensor, scratch: Tensor) -> None:
        """Write the derivative of `sums`, added up over all processes, by `x` to `out`."""


class InfoNCE:
    """-log softmax of the right answers along the rows and along the columns; half of both is the symmetric loss.

    It counts in bits: powers of two take a third of the time of powers of e on CPUs, and are what GPUs compute anyway.
    A row's right answers have equal shares of its target. They have as many right rows, since labels belong to samples:
    the shares serve both directions.
    """

    unit = math.log2(math.e)
    factor = math.log(2) / 2

    def __init__(self, num_prefixes: int, num_rows: int, num_columns: int, like: Tensor) -> None:
        self._along_rows = like.new_empty(num_prefixes, num_rows)
        self._along_columns = like.new_full((num_prefixes, num_columns), float("-inf"))
        self._right = like.new_zeros(num_prefixes)

    def observe(self, k: int, block: Block, x: Tensor, scratch: Tensor) -> None:
        self._along_rows[k, block.rows] = _log2_of_sum(x, 1, scratch)
        self._along_columns[k] = torch.logaddexp2(self._along_columns[k], _log2_of_sum(x, 0, scratch))
        self._right[k] += (x[block.right] * block.shares).sum()

    def sums(self, layout: RowLayout) -> Tensor:
        self._along_columns = reduce(torch.logaddexp2, from_all(self._along_columns, layout))
        own = slice(layout.offset, layout.offset + self._along_rows.shape[1])
        return self._along_rows.sum(dim=1) + self._along_columns[:, own].sum(dim=1) - 2 * self._right

    def gradient(self, k: int, block: Block, x: Tensor, out: Tensor, scratch: Tensor) -> None:
        torch.sub(x, self._along_rows[k, block.rows, None], out=out).exp2_()
        out += torch.sub(x, self._along_columns[k], out=scratch).exp2_()
        out[block.right] -= 2 * block.shares


class Sigmoid:
    """-log sigmoid(x + bias) of right pairs, -log sigmoid(-(x + bias)) of wrong ones."""

    unit = 1.0
    factor = 1.0

    def __init__(self, num_prefixes: int, bias: Tensor) -> None:
        self._bias = bias
        self._sums = bias.new_zeros(num_prefixes)

    def observe(self, k: int, block: Block, x: Tensor, scratch: Tensor) -> None:
        self._sums[k] += F.softplus(self._error(block, x, scratch)).sum()

    def sums(self, layout: RowLayout) -> Tensor:
        return self._sums

    def gradient(self, k: int, block: Block, x: Tensor, out: Tensor, scratch: Tensor) -> None:
        self._error(block, x, out).sigmoid_()
        out[block.right] *= -1

    def _error(self, block: Block, x: Tensor, out: Tensor) -> Tensor:
        """Logits of being wrong about each pair: the loss is their softplus, with no small difference of large sums."""
        torch.add(x, self._bias, out=out)
        out[block.right] *= -1
        return out


def _log2_of_sum(x: Tensor, dim: int, scratch: Tensor) -> Tensor:
    """log2 of the sum of 2**x along `dim`."""
    largest = x.amax(dim=dim, keepdim=True)
    return torch.sub(x, largest, out=scratch).exp2_().sum(dim=dim).log2_().add_(largest.squeeze(dim))
