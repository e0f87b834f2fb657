"""The parts of an explanation, before anything is drawn."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import isqrt
from typing import Literal

from PIL import Image
from torch import Tensor

Method = Literal["last", "rollout"]
"""`last`: the weights of the last layer, averaged over its heads; `rollout`: followed through all layers (see
`impresa.inside.towers.rollout`)."""
MAX_TILES = 16


@dataclass(frozen=True)
class Tile:
    """One map over the picture."""

    label: str
    values: Tensor
    """(rows, columns), from 0 on, over the square that the model sees; drawn from 0 to the maximum."""

    @classmethod
    def of(cls, label: str, row: Tensor) -> Tile:
        """From one value for each of N patches in reading order, N a square number."""
        side = isqrt(len(row))
        return cls(label, row.reshape(side, side))


@dataclass(frozen=True)
class Maps:
    """Maps of one kind."""

    title: str
    note: str
    tiles: tuple[Tile, ...]


@dataclass(frozen=True)
class Bars:
    """Shares by name."""

    title: str
    note: str
    shares: dict[str, float]


@dataclass(frozen=True)
class Strips:
    """A row of cells for each name."""

    title: str
    note: str
    names: tuple[str, ...]
    values: Tensor
    """(names, cells), from 0 on."""


@dataclass(frozen=True)
class Table:
    """Texts with a share each, which colours the cell."""

    title: str
    note: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[tuple[str, float], ...]], ...]
    """The name of each row, and its cells."""


Section = Maps | Bars | Strips | Table


@dataclass(frozen=True)
class Explanation:
    """All that is shown of one image."""

    picture: Image.Image
    """The square that the model sees, as it is shown."""
    whole: Image.Image | None
    """The image with that square marked, if it is not the whole."""
    sections: tuple[Section, ...]
    headline: str = ""
    """Question and answer, or the text."""
    notes: tuple[str, ...] = field(default=())
    """Sentences about what cannot be shown."""


def tiles_of(name: str, rows: Tensor) -> tuple[Tile, ...]:
    """Maps of several like tokens (M, N): of all of them together, and of up to `MAX_TILES` at even distances."""
    if len(rows) == 1:
        return (Tile.of(peak(rows[0]), rows[0]),)
    num = min(len(rows), MAX_TILES)
    chosen = [i * len(rows) // num for i in range(num)]
    each = tuple(Tile.of(f"{name} {i + 1}, {peak(rows[i])}", rows[i]) for i in chosen)
    mean = rows.mean(dim=0)
    return (Tile.of(f"mean of {len(rows)}, {peak(mean)}", mean), *each)


def peak(values: Tensor) -> str:
    """The largest of some shares, for a label."""
    return f"peak {float(values.max()):.1%}"
