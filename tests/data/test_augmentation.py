"""Training views: what they keep, what they change, and that a generator repeats them."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from impresa.data.augmentation import augment
from impresa.data.images import ImageTransform
from pictures import gradient, photo


def test_augmentation_none_is_the_image_itself() -> None:
    image = gradient(20, 10)
    assert augment(image, "none", ImageTransform(8), np.random.default_rng(0)) is image


@pytest.mark.parametrize("size", [(64, 64), (80, 60), (60, 80), (640, 20)])
def test_clip_crops_take_most_of_the_image_and_never_flip(size: tuple[int, int]) -> None:
    image = gradient(*size)
    views = [
        np.asarray(augment(image, "clip", ImageTransform(32), np.random.default_rng(i))).astype(int) for i in range(40)
    ]
    assert {view.shape for view in views} == {(32, 32, 3)}
    assert all(view[:, -1, 0].mean() > view[:, 0, 0].mean() for view in views)
    assert all(view[-1, :, 1].mean() - view[0, :, 1].mean() > 150 for view in views)
    if max(size) < 100:
        assert len({view.tobytes() for view in views}) > 30
        seen = [(v[:, -1, 0].mean() - v[:, 0, 0].mean()) * (v[-1, :, 1].mean() - v[0, :, 1].mean()) for v in views]
        assert min(seen) > 0.85 * 245**2


def test_a_long_image_gives_its_centre_undistorted() -> None:
    view = np.asarray(augment(gradient(800, 100), "clip", ImageTransform(32), np.random.default_rng(0))).astype(int)
    assert view[:, :, 0].mean() == pytest.approx(127.5, abs=2)
    assert view[:, -1, 0].mean() - view[:, 0, 0].mean() == pytest.approx(255 * 133 / 800, abs=4)


@pytest.mark.parametrize("kind", ["clip", "strong"])
def test_the_same_generator_gives_the_same_view(kind: str) -> None:
    image = photo(100, 90)
    one, two, other = (
        augment(image, kind, ImageTransform(32), np.random.default_rng(seed)).tobytes() for seed in (1, 1, 2)
    )
    assert one == two != other


@pytest.mark.parametrize("size", [(32, 32), (80, 60), (60, 80)])
def test_strong_views_differ_from_each_other_but_keep_the_sides(size: tuple[int, int]) -> None:
    image = gradient(*size)
    views = [
        np.asarray(augment(image, "strong", ImageTransform(32), np.random.default_rng(i))).astype(int)
        for i in range(40)
    ]
    assert {view.shape for view in views} == {(32, 32, 3)}
    assert len({view.tobytes() for view in views}) == 40
    # Left and right, top and bottom stay where they are: the gradients keep their direction.
    assert all(view[8:24, 24, 0].mean() > view[8:24, 8, 0].mean() for view in views)
    assert all(view[24, 8:24, 1].mean() > view[8, 8:24, 1].mean() for view in views)


def _offset(view: Image.Image) -> tuple[float, float]:
    """Where the ink of a picture lies, as seen from its centre."""
    ink = np.asarray(view.convert("L")).astype(float)
    rows, columns = np.indices(ink.shape)
    return (columns * ink).sum() / ink.sum() - 31.5, (rows * ink).sum() / ink.sum() - 31.5


def test_strong_views_warp_around_the_centre_and_shift_by_a_tenth_at_most() -> None:
    image = Image.new("RGB", (64, 64))
    image.paste((255, 255, 255), (28, 28, 36, 36))
    offsets = [_offset(augment(image, "strong", ImageTransform(64), np.random.default_rng(i))) for i in range(60)]
    furthest = np.abs(offsets).max(axis=0)
    assert (furthest < 0.1 * 64 * 1.6).all()  # a shift of a tenth, seen through the strongest zoom, shear and rotation
    assert (furthest > 0.05 * 64).all()
    assert np.abs(np.mean(offsets, axis=0)).max() < 2


def test_strong_views_have_other_light_but_the_same_hue() -> None:
    image = Image.new("RGB", (16, 16), (120, 60, 30))
    colours = np.array(
        [np.asarray(augment(image, "strong", ImageTransform(16), np.random.default_rng(i)))[8, 8] for i in range(40)]
    )
    assert np.ptp(colours[:, 0]) > 20
    assert (colours[:, 0] > colours[:, 1]).all()
    assert (colours[:, 1] > colours[:, 2]).all()


def test_strong_views_bend_straight_lines() -> None:
    """Turning, shearing and zooming keep the middle of a line in the middle; bending does not."""
    dots = []
    for x in (16, 32, 48):
        image = Image.new("RGB", (64, 64))
        image.paste((255, 255, 255), (x - 3, 29, x + 3, 35))
        dots.append(
            np.array(
                [_offset(augment(image, "strong", ImageTransform(64), np.random.default_rng(i))) for i in range(20)]
            )
        )
    left, middle, right = dots
    off = np.linalg.norm(middle - (left + right) / 2, axis=1)
    assert np.median(off) > 0.7
    assert off.max() < 0.1 * 64
