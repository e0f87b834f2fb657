"""Random numbers that are the same on every machine and under every version of numpy.

numpy promises the bits of its generators but not the streams of its distributions, so the embedded data set has its
own: splitmix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014) in plain integers.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import TypeVar

Item = TypeVar("Item")

_MASK = (1 << 64) - 1


class Draws:
    """A stream of draws that depends on its key alone, for example `Draws(seed, split, index)`."""

    def __init__(self, *key: int | str) -> None:
        name = "/".join(str(part) for part in key)
        self._state = int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little")

    def bits(self) -> int:
        """64 random bits, as an integer."""
        self._state = (self._state + 0x9E3779B97F4A7C15) & _MASK
        z = self._state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
        return z ^ (z >> 31)

    def below(self, bound: int) -> int:
        """An integer from 0 to `bound` - 1."""
        return (self.bits() * bound) >> 64

    def between(self, low: int, high: int) -> int:
        """An integer from `low` to `high`, both included."""
        return low + self.below(high - low + 1)

    def choice(self, items: Sequence[Item]) -> Item:
        return items[self.below(len(items))]

    def sample(self, items: Sequence[Item], count: int) -> list[Item]:
        """`count` different items in random order."""
        rest = list(items)
        return [rest.pop(self.below(len(rest))) for _ in range(count)]
