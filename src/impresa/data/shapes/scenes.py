"""Scenes of one to three coloured shapes, as structured data.

All lengths are thousandths of the image's side and all numbers are integers, so that a scene is the same everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import Literal

from impresa.data.shapes.draws import Draws

Split = Literal["train", "val", "test"]
Relation = Literal["left of", "right of", "above", "below"]

COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
SHAPES = ("circle", "square", "triangle", "diamond", "star", "cross", "ring", "heart")
SIZES = ("small", "large")
PLACES = ("top left", "top", "top right", "left", "center", "right", "bottom left", "bottom", "bottom right")
BACKGROUNDS = ("plain", "gradient", "stripes", "checks", "dots")

Pair = tuple[str, str]
"""(colour, shape)"""

# Two diagonals of the colour x shape table: each colour and each shape loses two of its eight partners.
HELD_OUT_PAIRS: tuple[Pair, ...] = tuple(
    (colour, SHAPES[(row + step) % len(SHAPES)]) for row, colour in enumerate(COLOURS) for step in (1, 4)
)
TRAINED_PAIRS: tuple[Pair, ...] = tuple(
    (colour, shape) for colour in COLOURS for shape in SHAPES if (colour, shape) not in HELD_OUT_PAIRS
)

_RADIUS = {"small": (98, 110), "large": (146, 160)}
_MARGIN = 8
_JITTER = 42
COUNTS = (1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3, 3)  # 15% one object, 40% two, 45% three


@dataclass(frozen=True, slots=True)
class SceneObject:
    """One shape, with the exact parameters of its drawing."""

    colour: str
    shape: str
    size: str
    place: str
    """The cell of a 3 x 3 grid that the object lies in; no two objects of a scene share one."""
    x: int
    """Centre, from the left edge."""
    y: int
    """Centre, from the top edge."""
    radius: int
    """Approximate distance from the centre to the farthest point."""
    angle: int
    """Rotation in degrees."""
    tint: tuple[int, int, int]
    """Added to red, green and blue of its colour."""

    @property
    def pair(self) -> Pair:
        return self.colour, self.shape

    @property
    def row(self) -> int:
        """Row of its place, 0 at the top."""
        return PLACES.index(self.place) // 3

    @property
    def column(self) -> int:
        """Column of its place, 0 on the left."""
        return PLACES.index(self.place) % 3


@dataclass(frozen=True, slots=True)
class Background:
    """A grey, faintly tinted background with a texture that no caption mentions."""

    kind: str
    level: int
    """Brightness, 0 to 255."""
    tint: tuple[int, int, int]
    """Added to red, green and blue."""
    contrast: int
    """Strength of the texture, in brightness levels."""
    period: int
    """Width of a stripe, check or dot."""
    slope: tuple[int, int]
    """Direction of the texture."""
    grain: int
    """Offset of the piece of noise that is added."""


@dataclass(frozen=True, slots=True)
class Scene:
    objects: tuple[SceneObject, ...]
    background: Background


def relations(first: SceneObject, second: SceneObject) -> tuple[Relation, ...]:
    """Position of `first` as seen from `second`: one or two relations that are unambiguous.

    Objects in different columns are at least a fifth of the image apart horizontally, and so are rows vertically.
    """
    found: list[Relation] = []
    if first.column != second.column:
        found.append("left of" if first.column < second.column else "right of")
    if first.row != second.row:
        found.append("above" if first.row < second.row else "below")
    return tuple(found)


def draw_scene(seed: int, split: Split, index: int) -> Scene:
    """Scene `index` of a split: a function of its arguments alone, and independent of the split's length."""
    draws = Draws("shapes", seed, split, index)
    pairs = HELD_OUT_PAIRS if split == "test" else TRAINED_PAIRS
    count = draws.choice(COUNTS)
    sizes = [draws.choice(SIZES) for _ in range(count)]
    radii = [draws.between(*_RADIUS[size]) for size in sizes]
    places = draws.sample(PLACES, count)
    centres = _centres(draws, places, radii)
    drawn = zip(draws.sample(pairs, count), sizes, radii, places, centres, strict=True)
    objects = tuple(
        SceneObject(*pair, size, place, x, y, radius, angle=4 * draws.between(-3, 3), tint=_tint(draws, 14))
        for pair, size, radius, place, (x, y) in drawn
    )
    return Scene(objects, _background(draws))


def _centres(draws: Draws, places: list[str], radii: list[int]) -> list[tuple[int, int]]:
    """Cell centres, moved at random as far as the objects neither touch nor leave the image."""
    cells = [PLACES.index(place) for place in places]
    for jitter in (_JITTER, _JITTER, _JITTER, _JITTER // 2, 0):
        centres = []
        for cell, radius in zip(cells, radii, strict=True):
            low, high = radius + _MARGIN, 1000 - radius - _MARGIN
            x = 167 + 333 * (cell % 3) + draws.between(-jitter, jitter)
            y = 167 + 333 * (cell // 3) + draws.between(-jitter, jitter)
            centres.append((min(max(x, low), high), min(max(y, low), high)))
        if _apart(centres, radii):
            break
    return centres


def _apart(centres: list[tuple[int, int]], radii: list[int]) -> bool:
    pairs = combinations(zip(centres, radii, strict=True), 2)
    return all((x1 - x2) ** 2 + (y1 - y2) ** 2 > (r1 + r2 + _MARGIN) ** 2 for ((x1, y1), r1), ((x2, y2), r2) in pairs)


def _background(draws: Draws) -> Background:
    dark = draws.below(2) == 0
    return Background(
        kind=draws.choice(BACKGROUNDS),
        level=draws.between(44, 90) if dark else draws.between(170, 214),
        tint=_tint(draws, 10),
        contrast=draws.between(8, 26),
        period=draws.between(50, 120),
        slope=(draws.between(-2, 2), draws.between(1, 2)),
        grain=draws.below(1 << 16),
    )


def _tint(draws: Draws, strength: int) -> tuple[int, int, int]:
    return draws.between(-strength, strength), draws.between(-strength, strength), draws.between(-strength, strength)
