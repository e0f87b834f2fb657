"""Explanations as pictures and pages: bright where the map is, whole, and safe for any words."""

from __future__ import annotations

import io
import re
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from impresa.data.images import ImageTransform
from impresa.inside.drawing import SHOWN_PX, marked, overlay, seen_square
from impresa.inside.explanation import MAX_TILES, Bars, Explanation, Maps, Strips, Table, Tile, tiles_of
from impresa.inside.figure import explanation_png
from impresa.inside.page import explanation_page

EVIL = "<script>alert('$x$')</script> & \u72ac \u202e"


def grey(width: int = 60, height: int = 60) -> Image.Image:
    return Image.new("RGB", (width, height), (90, 90, 90))


def everything(num_columns: int = 3, words: str = EVIL) -> Explanation:
    """An explanation with each kind of section."""
    names = tuple(f"{words[:8]}{i}" for i in range(num_columns))
    cells = tuple((f"{words} {i}", i / num_columns) for i in range(num_columns))
    sections = (
        Maps("Maps", "A note.", tiles_of(words, torch.rand(20, 16))),
        Maps("One", "A note.", (Tile.of(words, torch.zeros(4)),)),
        Bars("Bars", "A note.", {"one": 0.0, "two": 0.5}),
        Strips("Strips", "A note.", names, torch.rand(num_columns, 9)),
        Table("Table", "A note.", names, ((words, cells),)),
    )
    return Explanation(grey(), grey(90, 60), sections, words, (words,))


def test_the_overlay_is_brightest_at_the_peak_and_plain_where_the_map_is() -> None:
    values = torch.zeros(4, 4)
    values[1, 2] = 0.3
    shown = np.asarray(overlay(grey(), values)).sum(axis=2)
    row, column = np.unravel_index(shown.argmax(), shown.shape)
    assert (row * 4 // 60, column * 4 // 60) == (1, 2)
    for plain in (torch.zeros(4, 4), torch.full((4, 4), 0.2)):
        assert len(np.unique(np.asarray(overlay(grey(), plain)).reshape(-1, 3), axis=0)) == 1


def test_the_square_is_the_models_and_is_marked_on_the_whole_image() -> None:
    image = grey(120, 60)
    image.paste((255, 0, 0), (0, 0, 30, 60))  # left of the centre square
    transform = ImageTransform(16)
    square = seen_square(image, transform)
    assert square.size == (SHOWN_PX, SHOWN_PX)
    assert np.asarray(square)[:, 20].max() == 90
    whole = marked(image, transform)
    assert whole is not None
    assert whole.size == (2 * SHOWN_PX, SHOWN_PX)
    pixels = np.asarray(whole)
    assert pixels[SHOWN_PX // 2, 10, 0] < 110
    assert pixels[SHOWN_PX // 2, SHOWN_PX, 0] == 90
    assert pixels[SHOWN_PX // 2, SHOWN_PX // 2].tolist() == [255, 255, 255]  # the edge
    assert marked(grey(), transform) is None
    assert marked(image, ImageTransform(16, resize="squash")) is None
    assert marked(grey(), ImageTransform(16, crop_fraction=0.5)) is not None


def test_many_tokens_are_shown_at_even_distances_beside_their_mean() -> None:
    tiles = tiles_of("latent", torch.rand(64, 9))
    assert len(tiles) == MAX_TILES + 1
    assert [tile.label.split(",")[0] for tile in tiles[:3]] == ["mean of 64", "latent 1", "latent 5"]
    assert [tile.label for tile in tiles_of("query", torch.full((1, 4), 0.25))] == ["peak 25.0%"]


@pytest.mark.parametrize("num_columns", [1, 3, 8, 20])
def test_a_picture_of_everything(num_columns: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = Image.open(io.BytesIO(explanation_png(everything(num_columns))))
    pixels = np.asarray(found.convert("RGB"))
    assert found.format == "PNG"
    assert (pixels[0] == 255).all()
    assert (pixels[-1] == 255).all()
    assert (pixels[:, 0] == 255).all()
    assert (pixels[:, -1] == 255).all()


def test_a_page_of_everything_stands_alone_and_escapes_words() -> None:
    page = explanation_page(everything(), EVIL)
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in page
    assert "<script" not in page
    assert page.count("<img") == 2 + 17 + 1 + 3
    assert all(source.startswith("data:image/") for source in re.findall(r'src="([^"]*)"', page))
    for title in ("Maps", "One", "Bars", "Strips", "Table"):
        assert f"<h2>{title}</h2>" in page
