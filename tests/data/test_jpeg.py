"""JPEGs through simplejpeg: the pixels and the reasons of Pillow, for whatever file."""

from __future__ import annotations

import random
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fuzzing.mutations import edit_bytes
from impresa.config.dataset import DatasetConfig
from impresa.data import jpeg
from impresa.data.image_files import open_image
from impresa.data.images import ImageTransform, decode_image
from impresa.data.sources import open_source
from pictures import photo

pytest.importorskip("simplejpeg")
SIZES = [None, 200, 90, 30]
"""Least sides at which a picture of 403 x 301 pixels is decoded whole, and at a half, a quarter and an eighth."""


def encoded(image: Image.Image, **options: Any) -> bytes:
    file = BytesIO()
    image.save(file, "JPEG", **{"quality": 90, **options})
    return file.getvalue()


def oriented(number: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = number
    return exif


def picture() -> Image.Image:
    return photo(448, 320).crop((0, 0, 403, 301))


def several() -> bytes:
    file = BytesIO()
    picture().save(file, "MPO", save_all=True, append_images=[picture()])
    return file.getvalue()


PLAIN = {
    "half the colours": encoded(picture()),
    "all colours": encoded(picture(), subsampling="4:4:4"),
    "colours halved one way": encoded(picture(), subsampling="4:2:2"),
    "progressive": encoded(picture(), progressive=True),
    "grey": encoded(picture().convert("L")),
    "poor": encoded(picture(), quality=10),
    "restarts": encoded(picture(), restart_marker_rows=1),
    "turned": encoded(picture(), exif=oriented(6)),
    "grey and mirrored": encoded(picture().convert("L"), exif=oriented(7)),
    "with a colour profile": encoded(picture(), icc_profile=b"none that means anything" * 99),
    "with a comment": encoded(picture(), comment=b"a comment"),
    "with bytes behind it": encoded(picture()) + b"more",
}
LEFT_TO_PILLOW = {
    "four colours": encoded(picture().convert("CMYK")),
    "colours as they are": encoded(picture(), keep_rgb=True),
    "cut in the middle": PLAIN["half the colours"][:9000],
    "cut at the end": PLAIN["progressive"][:-2],
    "several pictures": several(),
}


def outcome(data: bytes, shrink_to: int | None = None) -> object:
    """Mode, size and pixels of a picture, or the reason why there is none."""
    try:
        image = decode_image(data, shrink_to)
    except ValueError as fault:
        return str(fault)
    return image.mode, image.size, image.tobytes()


def with_pillow_alone(monkeypatch: pytest.MonkeyPatch, data: bytes, shrink_to: int | None = None) -> object:
    with monkeypatch.context() as patch:
        patch.setattr(jpeg, "_library", lambda: None)
        return outcome(data, shrink_to)


def is_left_to_pillow(data: bytes) -> bool:
    image = open_image(BytesIO(data))
    return jpeg.decoded_jpeg(image, data) is image


@pytest.mark.parametrize("shrink_to", SIZES)
@pytest.mark.parametrize("kind", PLAIN)
def test_a_plain_file_has_the_pixels_of_pillow(
    kind: str, shrink_to: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not is_left_to_pillow(PLAIN[kind])
    found = outcome(PLAIN[kind], shrink_to)
    assert not isinstance(found, str)
    assert found == with_pillow_alone(monkeypatch, PLAIN[kind], shrink_to)


@pytest.mark.parametrize("kind", LEFT_TO_PILLOW)
def test_every_other_file_is_left_to_pillow(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_left_to_pillow(LEFT_TO_PILLOW[kind])
    assert outcome(LEFT_TO_PILLOW[kind]) == with_pillow_alone(monkeypatch, LEFT_TO_PILLOW[kind])


def test_small_and_odd_sizes_are_equal_too(monkeypatch: pytest.MonkeyPatch) -> None:
    for width, height in ((1, 1), (2, 3), (7, 1), (8, 8), (17, 33), (65, 16)):
        data = encoded(picture().crop((0, 0, width, height)))
        for shrink_to in (None, 1, 2, 4):
            assert outcome(data, shrink_to) == with_pillow_alone(monkeypatch, data, shrink_to), (width, height)


def test_a_damaged_file_gives_the_same_pixels_or_the_same_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(photo(67, 51), exif=oriented(3))
    kinds = set()
    for number in range(400):
        damaged = edit_bytes(data, random.Random(f"jpeg {number}"))
        found = outcome(damaged)
        assert found == with_pillow_alone(monkeypatch, damaged), number
        kinds.add(type(found))
    assert kinds == {str, tuple}


def test_reduced_decoding_is_asked_for_and_changes_little(tmp_path: Path) -> None:
    for number in range(4):
        photo(128, 64).resize((403, 301)).save(tmp_path / f"{number}.jpg", quality=90)
        (tmp_path / f"{number}.txt").write_text("a photograph")
    config = DatasetConfig(train_path=str(tmp_path), val_path=str(tmp_path), image_size=128, augmentation="none")
    reduced = replace(config, reduced_decode=True)
    images = [
        open_source(keys, split)[0].image for keys, split in ((config, "train"), (reduced, "train"), (reduced, "val"))
    ]
    assert [image.size for image in images if image] == [(403, 301), (202, 151), (403, 301)]
    full, small = (ImageTransform(128).pixels([image]).float() for image in images[:2] if image)
    assert 0 < (full - small).abs().mean() < 2.5
