"""Pictures cut into tiles (`anyres` of LLaVA-NeXT, Liu et al. 2024): each is a square that the image tower sees."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image

from impresa.data.images import ImageTransform, resample


class Tile(NamedTuple):
    """A part of a picture as a square, S by S."""

    square: Image.Image
    row: int = 0
    """From 1; 0 for the whole picture, downsized."""
    column: int = 0


def grid_of(image_size: tuple[int, int], side: int, most: int) -> tuple[int, int]:
    """Rows and columns of the tiles of a picture (width, height) whose squares have `side` pixels a side.

    Of all grids of up to `most` tiles it is the one that shows the most of the picture's own pixels when the picture is
    fitted into it, then the one with the least left over, as LLaVA-NeXT chooses; (1, 1) for one that is no larger than
    a square, or where `most` is 1.
    """
    width, height = image_size

    def fit(grid: tuple[int, int]) -> tuple[int, int]:
        rows, columns = grid
        scale = min(columns * side / width, rows * side / height)
        shown = min(int(width * scale) * int(height * scale), width * height)
        return -shown, rows * columns * side**2 - shown

    grids = ((rows, columns) for rows in range(1, most + 1) for columns in range(1, most // rows + 1))
    return min(sorted(grids, key=lambda grid: grid[0] * grid[1]), key=fit)


def tiles_of(transform: ImageTransform, image: Image.Image, most: int) -> list[Tile]:
    """The whole of an RGB image as the model's square, and behind it its tiles in reading order, if there are several.

    The grid lies over the part of the image that `transform.resize` keeps of a picture of the grid's shape, as the
    square over that of a square.
    """
    overview = Tile(transform.square(image))
    rows, columns = grid_of(image.size, transform.size, most)
    if rows * columns == 1:
        return [overview]
    left, top, right, bottom = transform.frame(image.size, columns / rows)
    width, height = (right - left) / columns, (bottom - top) / rows

    def tile(row: int, column: int) -> Tile:
        x, y = left + column * width, top + row * height
        square = resample(image, transform.size, (x, y, x + width, y + height), transform.resample, transform.bars)
        return Tile(square, row + 1, column + 1)

    return [overview, *(tile(row, column) for row in range(rows) for column in range(columns))]


def mean_share_cut(transform: ImageTransform, image_sizes: Sequence[tuple[int, int]], most: int = 1) -> float | None:
    """Mean part of the area of images (width, height), 0 to 1, that square or tiles leave out; None without images."""
    grids = [grid_of(size, transform.size, most) for size in image_sizes]
    shares = [transform.share_cut(size, grid[1] / grid[0]) for size, grid in zip(image_sizes, grids, strict=True)]
    return sum(shares) / len(shares) if shares else None
