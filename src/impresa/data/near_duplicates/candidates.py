"""Pairs of 64-bit hashes that differ in few bits, without comparing all with all.

The bits are four words of sixteen. Hashes that differ in at most seven bits have a word in which they differ in at most
one, so those with the same word, or with one bit of it flipped, are looked up in a sorted list (multi-index hashing,
Norouzi et al. 2012). Images of other brightness cannot be nearly equal, and are not looked at.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_WORDS, _BITS = 4, 16
MOST_BITS = 2 * _WORDS - 1
"""Bits in which the hashes of a candidate pair differ at most."""
_MOST_NEIGHBOURS = 500
"""Hashes that one is compared with in a single look-up, so that data whose images all hash alike come to an end."""
_PAIRS_AT_ONCE = 1 << 19
_ONES = np.array([bin(byte).count("1") for byte in range(256)], np.uint8)


class Candidates(NamedTuple):
    """P pairs; `first` and `second` are numbers of images, of which no pair comes twice."""

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    bits: NDArray[np.int64]
    """(P,) bits in which the hashes differ."""
    num_left_out: int
    """Pairs that were not looked at, because too many images hash alike."""


def candidate_pairs(hashes: NDArray[np.uint64], levels: NDArray[np.uint8], reach: int) -> Iterator[Candidates]:
    """All pairs of N images whose hashes differ in at most seven bits, in pieces of bounded size.

    Args:
        hashes: (N,).
        levels: (N,) brightness.
        reach: difference of brightness up to which images are compared.
    """
    for word in range(_WORDS):
        words = (hashes >> np.uint64(_BITS * word)).astype(np.uint16).astype(np.int64)
        keys = words << 8 | levels
        order = np.argsort(keys, kind="stable")
        keys, words = keys[order], words[order]
        low, high = (np.clip(levels[order].astype(np.int64) + side, 0, 255) for side in (-reach, reach))
        for flip in (0, *(1 << bit for bit in range(_BITS))):
            asked = np.flatnonzero(words & flip == 0)  # the flipped ones would find the same pairs
            there = (words[asked] ^ flip) << 8
            starts = np.searchsorted(keys, there | low[asked]) if flip else asked + 1
            ends = np.searchsorted(keys, there | high[asked], "right")
            found = np.maximum(ends - starts, 0)
            taken = np.minimum(found, _MOST_NEIGHBOURS)
            num_left_out = int((found - taken).sum())
            for first, second in _expanded(asked, starts, taken):
                yield _near(hashes, order[first], order[second], word, num_left_out)
                num_left_out = 0


def _expanded(
    asked: NDArray[np.int64], starts: NDArray[np.int64], counts: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Each of `asked` with the `counts` positions from `starts` on."""
    asked, starts, counts = (values[counts > 0] for values in (asked, starts, counts))
    ends = np.cumsum(counts)
    begin = 0
    while begin < len(asked):
        before = ends[begin] - counts[begin]
        end = max(int(np.searchsorted(ends, before + _PAIRS_AT_ONCE, "right")), begin + 1)
        piece = counts[begin:end]
        within = np.arange(piece.sum()) - np.repeat(ends[begin:end] - piece - before, piece)
        yield np.repeat(asked[begin:end], piece), np.repeat(starts[begin:end], piece) + within
        begin = end


def _near(
    hashes: NDArray[np.uint64], first: NDArray[np.int64], second: NDArray[np.int64], word: int, num_left_out: int
) -> Candidates:
    """The pairs that differ in few bits, without those that an earlier word has found."""
    ones = _ONES[(hashes[first] ^ hashes[second]).astype("<u8").view(np.uint8).reshape(-1, 8)]
    of_words = ones.reshape(-1, _WORDS, _BITS // 8).sum(2, dtype=np.int64)
    bits = of_words.sum(1)
    kept = (bits <= MOST_BITS) & (of_words[:, :word] > 1).all(1)
    pair = np.sort(np.stack([first[kept], second[kept]]), 0)
    return Candidates(pair[0], pair[1], bits[kept], num_left_out)
