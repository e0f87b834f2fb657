"""Scenes as pixels, at any size, in integer arithmetic only: every machine draws the same bytes.

A shape is sampled 4 x 4 times per pixel, which gives smooth edges. Its mask is kept for further objects of the same
shape, radius and angle, so that a picture costs a background and a few small blends.
"""

from __future__ import annotations

from functools import lru_cache
from math import ceil, cos, pi, radians, sin

import numpy as np
from numpy.typing import NDArray

from impresa.data.shapes.scenes import Background, Scene, SceneObject

Pixels = NDArray[np.uint8]

PALETTE = {
    "red": (214, 36, 44),
    "orange": (240, 130, 24),
    "yellow": (242, 214, 48),
    "green": (44, 160, 66),
    "cyan": (54, 200, 214),
    "blue": (44, 80, 210),
    "purple": (132, 58, 178),
    "pink": (244, 124, 184),
}

_UNIT = 256  # steps of a pixel in which corners are placed
_SAMPLES = 4  # per pixel and axis
_NOISE_SIDE = 512
_NOISE_STRENGTH = 4


def render(scene: Scene, size: int) -> Pixels:
    """Draw the scene as (size, size, 3) uint8."""
    image = _background(scene.background, size)
    for item in scene.objects:
        _draw(image, item)
    return image


def _draw(image: Pixels, item: SceneObject) -> None:
    size = len(image)
    mask = _mask(item.shape, max(item.radius * size * 4 // 1000, 4), item.angle)
    half = len(mask) // 2
    top, left = item.y * size // 1000 - half, item.x * size // 1000 - half
    window = image[max(top, 0) : top + len(mask), max(left, 0) : left + len(mask)]
    cover = mask[max(-top, 0) :, max(-left, 0) :][: window.shape[0], : window.shape[1], None]
    colour = np.add(PALETTE[item.colour], item.tint).clip(0, 255).astype(np.uint16)
    window[:] = (window * (255 - cover) + colour * cover + 127) // 255


@lru_cache(maxsize=4096)
def _mask(shape: str, radius_quarters: int, angle: int) -> NDArray[np.uint16]:
    """Coverage of each pixel by the shape, 0 to 255, as a square of odd side around its centre."""
    radius = radius_quarters * _UNIT // 4
    half = ceil(radius_quarters / 4) + 1
    side = 2 * half + 1
    step = _UNIT // _SAMPLES
    line = np.arange(side * _SAMPLES, dtype=np.int64) * step + step // 2 - side * _UNIT // 2
    x, y = line[None, :], line[:, None]
    if shape in ("circle", "ring"):
        distance = x * x + y * y
        inside = distance <= (radius * 94 // 100) ** 2
        if shape == "ring":
            inside &= distance >= (radius * 54 // 100) ** 2
    else:
        inside = _inside(_corners(shape, radius, angle), x, y)
    counts = inside.reshape(side, _SAMPLES, side, _SAMPLES).sum(axis=(1, 3))
    return (counts * 255 // _SAMPLES**2).astype(np.uint16)


def _inside(corners: list[tuple[int, int]], x: NDArray[np.int64], y: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Points (x, y) inside, by the even-odd rule: true for an odd number of edges to the right."""
    odd = np.zeros((y.shape[0], x.shape[1]), dtype=bool)
    for (x1, y1), (x2, y2) in zip(corners, corners[1:] + corners[:1], strict=True):
        crosses = (y1 > y) != (y2 > y)
        side = (x - x1) * (y2 - y1) - (x2 - x1) * (y - y1)
        odd ^= crosses & ((side < 0) == (y2 > y1))
    return odd


def _corners(shape: str, radius: int, angle: int) -> list[tuple[int, int]]:
    # Rounding to 1/256 pixel removes the last bit, in which sine and cosine differ between machines.
    turn_x, turn_y = cos(radians(angle)), sin(radians(angle))
    return [
        (round(radius * (x * turn_x - y * turn_y)), round(radius * (x * turn_y + y * turn_x)))
        for x, y in OUTLINES[shape]
    ]


def _regular(count: int, *radii: float) -> tuple[tuple[float, float], ...]:
    """Corners at equal angles from the top, their distance from the centre taken from `radii` in turn."""
    return tuple(
        (radii[i % len(radii)] * sin(2 * pi * i / count), -radii[i % len(radii)] * cos(2 * pi * i / count))
        for i in range(count)
    )


def _heart(t: float) -> tuple[float, float]:
    down = -(13 * cos(t) - 5 * cos(2 * t) - 2 * cos(3 * t) - cos(4 * t))
    return 16 * sin(t) ** 3 / 16.5, (down - 2.5) / 16.5


_ARM = ((0.3, 0.95), (0.3, 0.3), (0.95, 0.3))

OUTLINES: dict[str, tuple[tuple[float, float], ...]] = {
    "square": ((-0.84, -0.84), (0.84, -0.84), (0.84, 0.84), (-0.84, 0.84)),
    "triangle": ((0.0, -0.92), (0.98, 0.78), (-0.98, 0.78)),
    "diamond": ((0.0, -1.0), (0.6, 0.0), (0.0, 1.0), (-0.6, 0.0)),
    "star": _regular(10, 1.06, 0.44),
    "cross": tuple(
        (a * x, b * y) for a, b, step in ((1, -1, 1), (1, 1, -1), (-1, 1, 1), (-1, -1, -1)) for x, y in _ARM[::step]
    ),
    "heart": tuple(_heart(2 * pi * i / 48) for i in range(48)),
}
"""Corners of each shape other than circle and ring, in units of its radius; y points down."""


def _background(background: Background, size: int) -> Pixels:
    """(size, size, 3): brightness, texture, noise and tint."""
    # The strengths in `scenes` keep every sum within 0 to 255; negative terms may wrap around before.
    level = (background.level + _texture(background, size)).astype(np.uint8) + _grain(background.grain, size)
    pixels = np.empty((size, size, 3), np.uint8)
    for channel, tint in enumerate(background.tint):  # several times as fast as one addition with a last axis of 3
        np.add(level, np.uint8(tint % 256), out=pixels[:, :, channel])
    return pixels


def _texture(background: Background, size: int) -> NDArray[np.int32]:
    """(size, size) or broadcastable to it: difference from the background's level, at most its contrast."""
    contrast = background.contrast
    period = max(background.period * size // 1000, 2)
    line = np.arange(size, dtype=np.int32)
    x, y = line[None, :], line[:, None]
    dx, dy = background.slope
    match background.kind:
        case "gradient":
            return (x * dx + y * dy) * contrast // (size * (abs(dx) + dy))
        case "stripes":
            return (x * dx + y * dy) // (period * dy) % 2 * contrast
        case "checks":
            return (x // period + y // period) % 2 * contrast
        case "dots":
            u, v = x % (2 * period) - period, y % (2 * period) - period
            return (4 * (u * u + v * v) < period * period) * np.int32(contrast)
        case _:
            return np.zeros((1, 1), dtype=np.int32)


def _grain(start: int, size: int) -> Pixels:
    """(size, size) faint noise: a window of one sheet, which is repeated for larger images; negatives wrap around."""
    top, left = start & 0xFF, start >> 8
    sheet = noise_sheet()
    repeats = ceil((size + 256) / _NOISE_SIDE)
    if repeats > 1:
        sheet = np.tile(sheet, (repeats, repeats))
    return sheet[top : top + size, left : left + size]


@lru_cache(maxsize=1)
def noise_sheet() -> Pixels:
    """(512, 512) faint noise around 0, as uint8 in which negatives wrap around; do not write to it."""
    # splitmix64 of the pixel's index, in integer arithmetic that wraps around, the same in every numpy.
    z = (np.arange(_NOISE_SIDE**2, dtype=np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    levels = (z >> np.uint64(33)) % np.uint64(2 * _NOISE_STRENGTH + 1)
    return (levels.astype(np.int16) - _NOISE_STRENGTH).astype(np.uint8).reshape(_NOISE_SIDE, _NOISE_SIDE)
