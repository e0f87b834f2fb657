"""Groups of equal and near-equal images, and the pairs that they are made of.

Equal are images of the same pixels. Of others a pair of near hashes is only a candidate, as hashes of digits and
drawings collide: near-equal are those whose small versions differ little everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from impresa.data.near_duplicates.candidates import candidate_pairs
from impresa.data.near_duplicates.fingerprints import SMALL_PX, Fingerprints

Kind = Literal["bytes", "pixels", "near"]

MOST_DIFFERENCE = 12.0
"""Of near-equal images, see `differences`."""
_BLOCKS = 8
_REACH = 22
"""Difference of brightness that `MOST_DIFFERENCE` allows, with all of it in green."""
_MOST_RATIO = 0.05
"""Difference of the logarithms of the sides' ratios."""
_PAIRS_AT_ONCE = 2048
BIN_WIDTH = 2
NUM_BINS = 64
"""Of the histogram of differences; the last bin has all that are larger."""


@dataclass(frozen=True)
class Pair:
    """Two images, by their numbers in the order of the data, the earlier one first."""

    first: int
    second: int
    kind: Kind
    """Equal files, equal pixels in other files, or pixels that differ a little."""
    bits: int
    """In which their hashes differ."""
    difference: float
    """See `differences`."""


@dataclass(frozen=True)
class Duplicates:
    """What is equal or nearly so among N images."""

    groups: NDArray[np.int64]
    """(N,) number of the first image of each one's group."""
    equal: NDArray[np.int64]
    """(N,) number of the first image whose pixels are equal."""
    pairs: tuple[Pair, ...]
    """Enough to join the groups: images that others have joined already need not be compared."""
    histogram: NDArray[np.int64]
    """(64,) candidate pairs by the difference of their small versions, in steps of 2."""
    num_left_out: int
    """Pairs that were not compared, as very many images hash alike."""

    @property
    def num_compared(self) -> int:
        return int(self.histogram.sum())

    def members(self) -> list[tuple[int, ...]]:
        """The groups of several images, in order."""
        return _members(self.groups)

    def equal_members(self) -> list[tuple[int, ...]]:
        """The same for images of equal pixels."""
        return _members(self.equal)


def differences(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> NDArray[np.float64]:
    """(P,) differences of P pairs of small versions (P, 32, 32, 3): the largest, over 8 x 8 blocks, of the mean over a
    block of how much the colours differ, 0 to 255. A mean over the whole picture would not see a missing stroke."""
    side = SMALL_PX // _BLOCKS
    apart = np.abs(one.astype(np.int16) - other).reshape(-1, _BLOCKS, side, _BLOCKS, 3 * side)
    found: NDArray[np.float64] = apart.mean((2, 4)).reshape(-1, _BLOCKS**2).max(1, initial=0)
    return found


def find_duplicates(prints: Fingerprints) -> Duplicates:
    """The groups of equal and near-equal images."""
    contents, hashes, levels = prints.contents, prints.hashes, prints.levels
    small, ratios = prints.small, prints.ratios
    equal = _first_of_equal(prints.pixels)
    joined = _Joined(equal)
    pairs = [
        Pair(int(first), number, "bytes" if (contents[first] == contents[number]).all() else "pixels", 0, 0.0)
        for number, first in enumerate(equal)
        if first != number
    ]
    distinct = np.flatnonzero(equal == np.arange(len(equal)))
    histogram, num_left_out = np.zeros(NUM_BINS, np.int64), 0
    for found in candidate_pairs(hashes[distinct], levels[distinct], _REACH):
        num_left_out += found.num_left_out
        firsts, seconds = distinct[found.first], distinct[found.second]
        alike = np.abs(ratios[firsts] - ratios[seconds]) <= _MOST_RATIO
        for piece in _pieces(np.flatnonzero(alike)):
            part = piece[joined.roots(firsts[piece]) != joined.roots(seconds[piece])]
            first, second = firsts[part], seconds[part]
            apart = differences(small[first], small[second])
            bins = np.minimum(apart // BIN_WIDTH, NUM_BINS - 1).astype(np.int64)
            histogram += np.bincount(bins, minlength=NUM_BINS)
            for k in np.flatnonzero(apart <= MOST_DIFFERENCE):
                joined.join(int(first[k]), int(second[k]))
                bits, difference = int(found.bits[part[k]]), round(float(apart[k]), 3)
                pairs.append(Pair(int(first[k]), int(second[k]), "near", bits, difference))
    groups = joined.roots(np.arange(len(equal)))
    pairs.sort(key=lambda pair: (pair.first, pair.second))
    return Duplicates(groups, equal, tuple(pairs), histogram, num_left_out)


def _members(firsts: NDArray[np.int64]) -> list[tuple[int, ...]]:
    order = np.argsort(firsts, kind="stable")
    starts = np.flatnonzero(np.diff(firsts[order], prepend=-1))
    return [tuple(group.tolist()) for group in np.split(order, starts[1:]) if len(group) > 1]


def _first_of_equal(digests: NDArray[np.uint64]) -> NDArray[np.int64]:
    """(N,) number of the first of each one's equals."""
    order = np.lexsort((np.arange(len(digests)), digests[:, 1], digests[:, 0]))
    is_new = np.ones(len(digests), bool)
    is_new[1:] = (np.diff(digests[order], axis=0) != 0).any(1)
    firsts = np.empty(len(digests), np.int64)
    firsts[order] = order[is_new][np.cumsum(is_new) - 1]
    return firsts


def _pieces(numbers: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    return (numbers[start : start + _PAIRS_AT_ONCE] for start in range(0, len(numbers), _PAIRS_AT_ONCE))


class _Joined:
    """Sets of numbers, each known by its smallest (union-find)."""

    def __init__(self, firsts: NDArray[np.int64]) -> None:
        self._above = firsts.copy()

    def roots(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        found = self._above[numbers]
        while (self._above[found] != found).any():
            found = self._above[found]
        self._above[numbers] = found
        return found

    def join(self, one: int, other: int) -> None:
        low, high = sorted(int(self.roots(np.array([number]))[0]) for number in (one, other))
        self._above[high] = low
