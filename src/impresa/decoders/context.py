"""The positions of a call: which of them are real, their indices, and the keys and values of earlier calls.

Letters of shapes: B batch, S new positions, C all positions (those in the cache and the new ones), H heads, d width of
a head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from impresa.layers.rows import Rows


class Past(Protocol):
    """Keys and values of the C - S positions before: transformers' plain `DynamicCache()`, or a `SharedPast`."""

    def update(self, keys: Tensor, values: Tensor, slot: int, /) -> tuple[Tensor, Tensor]:
        """Keys and values (B, H, S, d) of new positions -> (B, H, C, d), those of all positions."""


class SharedPast:
    """Keys and values of prefixes, read once, for several texts behind each of them; gradients flow through.

    The first call of a network fills it; after `share` a second one reads it.
    """

    def __init__(self) -> None:
        self._slots: dict[int, tuple[Tensor, Tensor]] = {}
        self._rows: Tensor | None = None

    def share(self, rows: Tensor) -> None:
        """Put each following text b behind prefix `rows[b]`; `rows` is (B,) int64."""
        self._rows = rows

    def update(self, keys: Tensor, values: Tensor, slot: int, /) -> tuple[Tensor, Tensor]:
        if self._rows is None:
            self._slots[slot] = keys, values
            return keys, values
        past_keys, past_values = self._slots[slot]
        return torch.cat((past_keys[self._rows], keys), dim=2), torch.cat((past_values[self._rows], values), dim=2)


@dataclass(frozen=True)
class CausalContext:
    """The positions that those of a call may see."""

    mask: Tensor
    """(B, C) bool, true where a position is real; the last S are the new ones. Masked ones are seen by no other."""
    position_ids: Tensor
    """(B, S) int64, indices of the new tokens in the text."""
    cache: Past | None = None
    first_slot: int = 0
    """Number of slots of the cache that other layers fill, before ours."""
    is_packed: bool = False
    """Rows hold several texts, each of which begins at position 0 and sees itself alone."""

    @classmethod
    def of(cls, mask: Tensor, num_new: int | None = None, cache: Past | None = None) -> CausalContext:
        """The context of the last `num_new` positions, or of all; only real tokens are counted, not padding."""
        position_ids = (mask.long().cumsum(dim=1) - 1).clamp(min=0)
        return cls(mask, position_ids if num_new is None else position_ids[:, -num_new:], cache)

    @classmethod
    def of_rows(cls, rows: Rows) -> CausalContext:
        """The context of texts that are packed into rows."""
        return cls(rows.real, rows.position_ids, is_packed=True)
