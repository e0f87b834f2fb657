"""Contrastive objectives that read the similarity matrix in tiles: once for the value, once for the gradient.

They know nothing of embeddings. `impresa.losses.matryoshka` hands them the logits of every prefix, tile by tile.

Letters of shapes: K prefixes, n rows (those of this process), m columns (those of all processes), q columns of hard
negatives behind them, r by c a tile.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import combinations, product
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from impresa.losses.gather import RowLayout, from_all

Hidden = tuple[Tensor, Tensor]
"""Rows and columns of places in the similarity matrix, int64."""
_UNSEEN = -1e4


@dataclass(frozen=True)
class Tile:
    """Some rows by some columns of the similarity matrix, and where the right answers are in it."""

    rows: slice
    columns: slice
    right: tuple[Tensor, Tensor]
    """Row and column within the tile of each right answer."""
    shares: Tensor
    """For each right answer, its share of its row's target and of its column's, added up: each target is 1 in all."""
    is_negative: bool = False
    """Columns of hard negatives: rows are told from them, and they look for nothing."""
    hidden: Hidden | None = None
    """Places of the tile that no row sees."""

    def hide(self, x: Tensor) -> None:
        """Make the logits `x` (r, c) of what no row sees too small to count; finite, for they are multiplied by 0."""
        if self.hidden is not None:
            x[self.hidden] = _UNSEEN

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows.stop - self.rows.start, self.columns.stop - self.columns.start


@dataclass(frozen=True)
class RightAnswers:
    """Rows of all processes that belong together though they are of different samples. This relation is symmetric, and
    need not be transitive: an image that goes with two captions does not make the captions equal."""

    classes: Tensor
    """(L, m) integers; two rows belong together if they are equal in one of the L."""
    shares: Tensor
    """(m,): one over the number of rows that each belongs to, itself included."""

    @classmethod
    def among(cls, labels: Tensor, device: torch.device) -> RightAnswers | None:
        """From (m, L) labels on the CPU; None if no two rows are equal in a column, which costs least."""
        values, classes = zip(*(column.unique(return_inverse=True) for column in labels.T), strict=True)
        if all(len(different) == len(labels) for different in values):
            return None
        return cls(torch.stack(classes).to(device, torch.int32), num_right(classes).reciprocal().to(device))


def right_negatives(labels: Tensor, negative_keys: Tensor, device: torch.device) -> Hidden | None:
    """Rows, and negatives that are right for them after all: their text is that of a right answer of the row.

    Args:
        labels: (m, L) as in `RightAnswers.among`, the last column being the texts' own.
        negative_keys: (q,) the same numbers for the texts of the negatives, on the CPU.
        device: of the result.

    Returns:
        Row and column of each; None if there are none.
    """
    texts = labels[:, -1]
    known = torch.isin(negative_keys, texts).nonzero().squeeze(1)
    found = []
    for column in known.tolist():
        same = labels[texts == negative_keys[column]]  # right for these rows, and for whoever they are right for
        equal = [torch.isin(own, others) for own, others in zip(labels.T, same.T, strict=True)]
        rows = torch.stack(equal).any(dim=0).nonzero().squeeze(1)
        found.append(torch.stack([rows, torch.full_like(rows, column)]))
    if not found:
        return None
    rows, columns = torch.cat(found, dim=1).to(device)
    return rows, columns


def num_right(classes: Sequence[Tensor]) -> Tensor:
    """(m,) float64: for each row how many rows are equal in one of L columns (m,).

    Counted by inclusion and exclusion: a matrix of m by m takes long.
    """
    total = torch.zeros(len(classes[0]), dtype=torch.float64)
    for size in range(1, len(classes) + 1):
        for chosen in combinations(classes, size):
            _, of_all, counts = torch.stack(chosen).unique(dim=1, return_inverse=True, return_counts=True)
            total -= (-1) ** size * counts[of_all]
    return total


@dataclass(frozen=True)
class Targets:
    """Which rows and columns belong together."""

    layout: RowLayout
    right: RightAnswers | None
    """None: a row belongs to its own sample only."""
    num_negatives: int = 0
    """q, of all processes."""
    hidden: Hidden | None = None
    """Of all m rows and the q columns of negatives, those that no row sees."""

    def tiles(self, like: Tensor, size: int) -> Iterator[Tile]:
        """Tiles of at most `size` by `size` that cover the rows of `like` and all columns; none if it has no rows."""
        for rows, columns in product(_spans(len(like), size), _spans(self.layout.total, size)):
            yield Tile(rows, columns, *self._right_answers(rows, columns, like))
        nowhere, nothing = like.new_zeros(0, dtype=torch.long), like.new_zeros(0)
        for rows, negatives in product(_spans(len(like), size), _spans(self.num_negatives, size)):
            columns = slice(negatives.start + self.layout.total, negatives.stop + self.layout.total)
            hidden = self._hidden_in(rows, negatives)
            yield Tile(rows, columns, (nowhere, nowhere), nothing, is_negative=True, hidden=hidden)

    def _hidden_in(self, rows: slice, negatives: slice) -> Hidden | None:
        if self.hidden is None:
            return None
        row, column = self.hidden[0] - (rows.start + self.layout.offset), self.hidden[1] - negatives.start
        num_rows, num_columns = rows.stop - rows.start, negatives.stop - negatives.start
        inside = (row >= 0) & (row < num_rows) & (column >= 0) & (column < num_columns)
        return row[inside], column[inside]

    def _right_answers(self, rows: slice, columns: slice, like: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
        offset = self.layout.offset
        if self.right is None:
            first, last = max(rows.start, columns.start - offset), min(rows.stop, columns.stop - offset)
            own = torch.arange(first, max(first, last), device=like.device)
            return (own - rows.start, own + (offset - columns.start)), like.new_full((len(own),), 2)
        own_rows = slice(rows.start + offset, rows.stop + offset)
        equal = self.right.classes[:, own_rows, None] == self.right.classes[:, None, columns]
        row, column = equal.any(dim=0).nonzero(as_tuple=True)
        shares = self.right.shares[own_rows][row] + self.right.shares[columns][column]
        return (row, column), shares.to(like.dtype)


def _spans(length: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, length)) for start in range(0, length, size))


class Objective(Protocol):
    """A loss on the logits of K prefixes. `scratch` is a tensor of the shape of `x` that may be overwritten."""

    unit: float
    """Factor from the scaled cosines to the logits `x` of this objective."""
    factor: float
    """Factor from `sums` to a sum of nats over rows."""

    def observe(self, k: int, tile: Tile, x: Tensor, scratch: Tensor) -> None:
        """Take in the logits `x` (r, c) of prefix k in a tile."""

    def sums(self, layout: RowLayout) -> Tensor:
        """(K,) losses summed over the rows of this process, once all tiles were observed."""

    def gradient(self, k: int, tile: Tile, x: Tensor, out: Tensor, scratch: Tensor) -> None:
        """Write the derivative of `sums`, added up over all processes, by `x` to `out`."""


class InfoNCE:
    """-log softmax of the right answers along the rows and along the columns; half of both is the symmetric loss.

    It counts in bits: powers of two take a third of the time of powers of e on CPUs, and are what GPUs compute anyway.
    A row's right answers have equal shares of its target, and a column's of its own.
    """

    unit = math.log2(math.e)
    factor = math.log(2) / 2

    def __init__(self, num_prefixes: int, num_rows: int, num_columns: int, like: Tensor) -> None:
        """`num_columns` leaves out hard negatives, along whose columns nothing is looked for."""
        self._along_rows = like.new_full((num_prefixes, num_rows), float("-inf"))
        self._along_columns = like.new_full((num_prefixes, num_columns), float("-inf"))
        self._right = like.new_zeros(num_prefixes)

    def observe(self, k: int, tile: Tile, x: Tensor, scratch: Tensor) -> None:
        for sums, dim in ((self._along_rows[k, tile.rows], 1), (self._along_columns[k, tile.columns], 0)):
            if dim == 1 or not tile.is_negative:
                torch.logaddexp2(sums, _log2_of_sum(x, dim, scratch), out=sums)
        self._right[k] += (x[tile.right] * tile.shares).sum()

    def sums(self, layout: RowLayout) -> Tensor:
        self._along_columns = reduce(torch.logaddexp2, from_all(self._along_columns, layout))
        own = slice(layout.offset, layout.offset + self._along_rows.shape[1])
        return self._along_rows.sum(dim=1) + self._along_columns[:, own].sum(dim=1) - self._right

    def gradient(self, k: int, tile: Tile, x: Tensor, out: Tensor, scratch: Tensor) -> None:
        torch.sub(x, self._along_rows[k, tile.rows, None], out=out).exp2_()
        if not tile.is_negative:
            out += torch.sub(x, self._along_columns[k, tile.columns], out=scratch).exp2_()
        out[tile.right] -= tile.shares


class Sigmoid:
    """-log sigmoid(x + bias) of right pairs, -log sigmoid(-(x + bias)) of wrong ones."""

    unit = factor = 1.0

    def __init__(self, num_prefixes: int, bias: Tensor) -> None:
        self._bias = bias
        self._sums = bias.new_zeros(num_prefixes)

    def observe(self, k: int, tile: Tile, x: Tensor, scratch: Tensor) -> None:
        self._sums[k] += F.softplus(self._error(tile, x, scratch)).sum()

    def sums(self, layout: RowLayout) -> Tensor:
        return self._sums

    def gradient(self, k: int, tile: Tile, x: Tensor, out: Tensor, scratch: Tensor) -> None:
        self._error(tile, x, out).sigmoid_()
        out[tile.right] *= -1

    def _error(self, tile: Tile, x: Tensor, out: Tensor) -> Tensor:
        """Logits of being wrong about each pair: the loss is their softplus, with no small difference of large sums."""
        torch.add(x, self._bias, out=out)
        out[tile.right] *= -1
        return out


def _log2_of_sum(x: Tensor, dim: int, scratch: Tensor) -> Tensor:
    """log2 of the sum of 2**x along `dim`."""
    largest = x.amax(dim=dim, keepdim=True)
    return torch.sub(x, largest, out=scratch).exp2_().sum(dim=dim).log2_().add_(largest.squeeze(dim))
