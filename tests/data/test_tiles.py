"""Cutting pictures into tiles: the grid, and what each tile shows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.image_processing_utils import select_best_resolution

from impresa.data.images import ImageTransform, resample
from impresa.data.tiles import grid_of, mean_share_cut, tiles_of

SIDE = 16


def gradient(width: int, height: int) -> Image.Image:
    """A picture whose red says how far to the right, and whose green says how far down a pixel lies."""
    across, down = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([across, down, 0 * down], axis=-1).round().astype(np.uint8))


@pytest.mark.parametrize("most", [2, 4, 6, 9])
def test_the_grid_is_the_one_that_llava_next_chooses(most: int) -> None:
    grids = [(rows, columns) for rows in range(1, most + 1) for columns in range(1, most + 1) if rows * columns <= most]
    resolutions = [[rows * SIDE, columns * SIDE] for rows, columns in sorted(grids, key=lambda grid: grid[0] * grid[1])]
    for width in range(7, 120, 9):
        for height in range(8, 120, 7):
            theirs = select_best_resolution((height, width), resolutions)
            assert [side * SIDE for side in grid_of((width, height), SIDE, most)] == list(theirs)


@pytest.mark.parametrize(
    ("size", "most", "grid"),
    [
        ((64, 64), 1, (1, 1)),
        ((16, 16), 9, (1, 1)),
        ((10, 12), 9, (1, 1)),
        ((64, 64), 4, (2, 2)),
        ((64, 64), 3, (1, 1)),
        ((128, 32), 4, (1, 4)),
        ((32, 128), 4, (4, 1)),
        ((96, 64), 6, (2, 3)),
    ],
)
def test_grids_of_some_pictures(size: tuple[int, int], most: int, grid: tuple[int, int]) -> None:
    assert grid_of(size, SIDE, most) == grid


@pytest.mark.parametrize("how", ["crop", "pad", "squash"])
def test_tiles_lie_side_by_side_behind_the_whole(how: str) -> None:
    picture, transform = gradient(96, 62), ImageTransform(SIDE, resize=how)
    whole, *tiles = tiles_of(transform, picture, 6)
    assert whole.square.tobytes() == transform.square(picture).tobytes()
    assert (whole.row, whole.column) == (0, 0)
    assert [(tile.row, tile.column) for tile in tiles] == [(r, c) for r in (1, 2) for c in (1, 2, 3)]
    assert {tile.square.size for tile in tiles} == {(SIDE, SIDE)}
    rows = [np.concatenate([np.asarray(tile.square) for tile in tiles[start : start + 3]], axis=1) for start in (0, 3)]
    sheet = np.concatenate(rows).astype(int)
    expected = {"squash": (0, 0, 96, 62), "crop": (1.5, 0, 94.5, 62), "pad": (0, 0, 96, 62)}[how]
    if how == "pad":  # two bars, each half a pixel high
        assert np.abs(sheet[1:-1, :, 0].mean(axis=0) - np.linspace(0, 255, 48)).max() < 6
    else:
        like = picture.resize((48, 32), Image.Resampling.BICUBIC, box=expected)
        assert np.abs(sheet - np.asarray(like).astype(int)).max() <= 2


def test_a_picture_no_larger_than_the_square_stays_whole() -> None:
    transform = ImageTransform(SIDE)
    assert len(tiles_of(transform, gradient(16, 16), 9)) == 1
    assert len(tiles_of(transform, gradient(64, 64), 1)) == 1


def test_details_that_the_square_loses_are_in_the_tiles() -> None:
    stripes = Image.fromarray(np.tile(np.array([0, 255], np.uint8), (32, 16))).convert("RGB")  # one pixel wide
    whole, *tiles = tiles_of(ImageTransform(SIDE), stripes, 4)
    assert np.asarray(whole.square).std() < 20
    assert min(np.asarray(tile.square).std() for tile in tiles) > 100


def test_tiles_cut_off_less_of_long_pictures() -> None:
    transform = ImageTransform(SIDE)
    assert mean_share_cut(transform, [(96, 32)], 1) == pytest.approx(2 / 3)
    assert mean_share_cut(transform, [(96, 32)], 3) == 0
    assert mean_share_cut(transform, [], 3) is None


def test_the_frame_of_a_square_is_what_it_was() -> None:
    picture = gradient(50, 41)
    assert ImageTransform(SIDE).frame(picture.size) == (4.5, 0, 45.5, 41)
    assert ImageTransform(SIDE, resize="pad").frame(picture.size) == (0, -4.5, 50, 45.5)
    square = resample(picture, SIDE, (4.5, 0, 45.5, 41))
    assert torch.equal(ImageTransform(SIDE).pixels([picture])[0], torch.from_numpy(np.array(square)))
