"""Training views: what they keep, what they change, and that a generator repeats them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from impresa.config.augmentation import Augmentation, AugmentationOptions, shrink_to_px
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
def test_the_same_generator_gives_the_same_view(kind: Augmentation) -> None:
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


def views(image: Image.Image, kind: Augmentation = "clip", num: int = 30, **options: Any) -> NDArray[np.int64]:
    """(num, 32, 32, 3) views of an image by a preset with options."""
    chosen = AugmentationOptions(**options)
    made = (augment(image, kind, ImageTransform(32), np.random.default_rng(i), chosen) for i in range(num))
    return np.stack([np.asarray(view) for view in made]).astype(int)


PLAIN: dict[str, Any] = {"scale": (1.0, 1.0), "ratio": (1.0, 1.0)}
"""No random crop of a square under `clip`."""
KNOBS: list[dict[str, Any]] = [
    {"scale": (0.3, 0.5)},
    {"ratio": (0.5, 0.6)},
    {"horizontal_flip": 0.5},
    *({name: 10.0} for name in ("rotation_degrees", "shear_degrees")),
    *({name: 0.3} for name in ("zoom", "shift", "bend")),
    *({name: 0.3} for name in ("brightness", "contrast", "saturation", "hue", "gray_scale_prob")),
    {"hue": 0.3, "color_jitter_prob": 0.5},
]


@pytest.mark.parametrize("kind", ["clip", "strong"])
@pytest.mark.parametrize("knob", KNOBS, ids=" ".join)
def test_every_option_changes_a_preset_and_is_drawn_from_the_generator(
    knob: dict[str, Any], kind: Augmentation
) -> None:
    image = photo(64, 64)
    base: dict[str, Any] = {"scale": (0.6, 0.6)} if "ratio" in knob else {}
    plain, changed, again = (views(image, kind, **{**base, **own}) for own in ({}, knob, knob))
    assert (changed == again).all()
    assert (changed != plain).any()


@pytest.mark.parametrize("kind", ["clip", "strong"])
def test_what_the_preset_has_itself_changes_nothing(kind: Augmentation) -> None:
    presets: dict[str, dict[str, Any]] = {
        "clip": {"scale": (0.9, 1.0), "ratio": (3 / 4, 4 / 3), "brightness": 0.0},
        "strong": {"rotation_degrees": 15.0, "shear_degrees": 12.0, "zoom": 0.2, "shift": 0.1, "bend": 0.06}
        | {"brightness": 0.2, "contrast": 0.2, "hue": 0.0},
    }
    assert (views(photo(80, 60), kind, **presets[kind]) == views(photo(80, 60), kind)).all()


def test_an_option_moves_no_draw_before_it() -> None:
    image = photo(64, 64)
    plain, flipped = views(image, "strong"), views(image, "strong", horizontal_flip=1.0)
    assert (flipped == plain[:, :, ::-1]).all()


def test_crops_have_the_area_and_the_sides_of_the_options() -> None:
    spans = views(gradient(64, 64), num=60, scale=(0.25, 0.25), ratio=(2.0, 2.0))
    across = (spans[:, 16, -1, 0] - spans[:, 16, 0, 0]).mean() / 255
    down = (spans[:, -1, 16, 1] - spans[:, 0, 16, 1]).mean() / 255
    assert across == pytest.approx(0.5 * 2**0.5, abs=0.04)
    assert down == pytest.approx(0.5 / 2**0.5, abs=0.04)


def test_flips_and_greys_come_with_their_probability() -> None:
    image = gradient(64, 64)
    flipped = views(image, num=400, horizontal_flip=0.25)
    assert (flipped[:, :, 0, 0] > flipped[:, :, -1, 0]).all(axis=1).mean() == pytest.approx(0.25, abs=0.06)
    grey = views(photo(64, 64), num=400, gray_scale_prob=0.25)
    assert (np.ptp(grey, axis=3) == 0).all(axis=(1, 2)).mean() == pytest.approx(0.25, abs=0.06)


def test_colours_change_as_they_are_told() -> None:
    image = Image.new("RGB", (32, 32), (120, 60, 60))
    red, green, blue = np.moveaxis(views(image, num=200, hue=0.5, **PLAIN)[:, 16, 16], 1, 0)
    assert all(
        ((one > other + 20) & (one > third + 20)).any()
        for one, other, third in ((red, green, blue), (blue, red, green), (green, blue, red))
    )
    pale = views(image, num=200, saturation=1.0, **PLAIN)[:, 16, 16]
    assert np.ptp(pale, axis=1).min() < 6
    assert np.ptp(pale, axis=1).max() > 110
    still = views(image, num=400, hue=0.5, color_jitter_prob=0.25, **PLAIN)[:, 16, 16]
    assert (still == (120, 60, 60)).all(axis=1).mean() == pytest.approx(0.75, abs=0.06)


def test_a_rotation_alone_turns_around_the_centre() -> None:
    image = Image.new("RGB", (32, 32))
    image.paste((255, 255, 255), (14, 2, 18, 8))
    angles = []
    for view in views(image, num=60, rotation_degrees=90.0, **PLAIN):
        rows, columns = np.nonzero(view[..., 0] > 128)
        angles.append(np.degrees(np.arctan2(columns.mean() - 15.5, 15.5 - rows.mean())))
    assert np.abs(angles).max() < 95
    assert min(angles) < -60
    assert max(angles) > 60


@pytest.mark.parametrize(("scale", "side"), [(None, 64), ((0.25, 1.0), 64), ((0.04, 1.0), 160)])
def test_a_picture_is_decoded_as_large_as_its_smallest_crop_needs(scale: tuple[float, float] | None, side: int) -> None:
    assert shrink_to_px(32, "clip", AugmentationOptions(scale=scale)) == side
    assert shrink_to_px(32, "none", AugmentationOptions()) == 64
    assert shrink_to_px(32, "none", AugmentationOptions(), spare=1.0) == 32
    assert shrink_to_px(32, "clip", AugmentationOptions(scale=(0.25, 1.0)), spare=1.0) == 64
