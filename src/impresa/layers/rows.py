"""Sequences of a padded batch packed into fewer rows, several in a row, for networks that compute rows.

Letters of shapes: B sequences, T tokens of the longest with its padding, R rows, L tokens of the longest row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from impresa.layers.eager import eager

_LARGEST = 8
"""Rows are as long as so many of the longest sequence at most."""


@dataclass(frozen=True)
class Rows:
    """The places of the real tokens of B sequences in R rows, each sequence whole."""

    source: Tensor
    """(R, L) int64, the place of each token in the flattened batch, from 0 to B T - 1; 0 where a row is filled up."""
    real: Tensor
    """(R, L) bool, false where a row is filled up, which is at its end."""
    position_ids: Tensor
    """(R, L) int64, the number of each token in its own sequence; 0 where a row is filled up."""
    shape: tuple[int, int]
    """(B, T)."""

    @classmethod
    @eager
    def of(cls, mask: Tensor, *, dim: int, most: int | None = None) -> Self:
        """Rows for the tokens where `mask` (B, T) bool is true, of the length that costs least.

        Args:
            dim: width of the network, which decides between padding and longer attention.
            most: the longest row that the network can compute; None for any. A sequence is never divided.
        """
        counts = mask.sum(dim=1).tolist()
        rows = _fewest(counts, dim, most)
        longest = max(sum(counts[i] for i in row) for row in rows)
        tokens = mask.flatten().nonzero().squeeze(1).split(counts)
        source = tokens[0].new_zeros(len(rows), longest)
        position_ids, real = torch.zeros_like(source), torch.zeros_like(source, dtype=torch.bool)
        for number, row in enumerate(rows):
            found = torch.cat([tokens[i] for i in row])
            source[number, : len(found)] = found
            real[number, : len(found)] = True
            position_ids[number, : len(found)] = torch.cat([torch.arange(counts[i]) for i in row]).to(mask.device)
        return cls(source, real, position_ids, (mask.shape[0], mask.shape[1]))

    def joined(self, x: Tensor) -> Tensor:
        """(B, T, ...) -> (R, L, ...); what fills a row up may be anything."""
        return x.flatten(0, 1)[self.source]

    @eager
    def spread(self, x: Tensor) -> Tensor:
        """(R, L, ...) -> (B, T, ...), zero where there is no token."""
        flat = x.new_zeros(self.shape[0] * self.shape[1], *x.shape[2:])
        return flat.index_copy(0, self.source[self.real], x[self.real]).unflatten(0, self.shape)


def same_sequence(position_ids: Tensor) -> Tensor:
    """(R, 1, L, L) bool, true where two tokens of a row belong to one sequence; `position_ids` as in `Rows`, so that
    each token that fills a row up is a sequence of its own."""
    sequence = (position_ids == 0).cumsum(dim=1)
    return sequence[:, None, :, None] == sequence[:, None, None, :]


def _fewest(counts: Sequence[int], dim: int, most: int | None) -> list[list[int]]:
    """The sequences of each row. A token costs 12 D^2 multiplications in the linear layers of a block, and 2 L D in its
    attention to a row of L."""
    longest = max(*counts, 1)
    limit = longest * _LARGEST if most is None else max(most, longest)
    lengths = [longest * factor for factor in range(1, _LARGEST + 1) if longest * factor <= limit]

    def cost(rows: list[list[int]]) -> int:
        length = max(sum(counts[i] for i in row) for row in rows)
        return len(rows) * length * (6 * dim + length)

    return min((_filled(counts, length) for length in lengths), key=cost)


def _filled(counts: Sequence[int], length: int) -> list[list[int]]:
    """Rows of at most `length` tokens: each sequence, the longest first, goes into the first row with room for it."""
    rows: list[list[int]] = []
    room: list[int] = []
    for i in sorted(range(len(counts)), key=lambda i: -counts[i]):
        place = next((row for row, left in enumerate(room) if left >= counts[i]), len(rows))
        if place == len(rows):
            rows.append([])
            room.append(length)
        rows[place].append(i)
        room[place] -= counts[i]
    return rows
