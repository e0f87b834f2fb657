"""Decoding of every mode and of damaged files, the transform, and the training crops."""

from __future__ import annotations

import re
import struct
import tracemalloc
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import TypeAdapter

import impresa
from impresa.data.image_files import FORMATS
from impresa.data.images import CLIP_MEAN, CLIP_STD, ImageTransform, decode_image, load_image
from impresa.errors import DataError
from pictures import gradient, photo


def encoded(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    file = BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "CMYK", "YCbCr", "RGBA", "LA", "I;16", "I", "F", "HSV", "PA"])
def test_every_mode_becomes_rgb_of_the_same_picture(mode: str) -> None:
    grey = np.zeros((6, 8), np.uint8)
    grey[:, 4:] = 255
    if mode in ("I;16", "I"):
        image = Image.fromarray((grey.astype(np.uint16 if mode == "I;16" else np.int32)) * 257)
        assert image.mode == mode
    elif mode == "F":
        image = Image.fromarray(grey.astype(np.float32) / 255)
    else:
        image = (
            Image.fromarray(grey).convert("RGB").convert(mode) if mode != "PA" else Image.fromarray(grey).convert("PA")
        )
    rgb = decode_image(image)
    assert rgb.mode == "RGB"
    assert np.abs(np.asarray(rgb).astype(int) - grey[..., None]).max() <= 1


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_sixteen_bit_files_keep_their_brightness(format: str) -> None:
    wide = Image.fromarray(np.full((4, 4), 128 * 257, np.uint16))
    assert np.asarray(decode_image(encoded(wide, format))).tolist() == np.full((4, 4, 3), 128).tolist()


def test_float_images_may_reach_one_or_255() -> None:
    for top in (1.0, 255.0):
        image = Image.fromarray(np.array([[0.0, top / 2, top, np.nan]], np.float32))
        assert np.abs(np.asarray(decode_image(image))[0, :, 0].astype(int) - [0, 128, 255, 0]).max() <= 1


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB", "L"])
def test_transparency_is_laid_over_white(mode: str) -> None:
    if mode in ("RGBA", "LA"):
        data = encoded(Image.new(mode, (4, 4), (0,) * len(mode)))
    else:
        data = encoded(Image.new(mode, (4, 4), 0), transparency=(0, 0, 0) if mode == "RGB" else 0)
    assert np.asarray(decode_image(data)).min() == 255


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_honoured(orientation: int) -> None:
    upright = gradient(24, 16)
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Pillow's transpositions that store a picture so oriented
    stored = upright.transpose(Image.Transpose(undo[orientation])) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    shown = decode_image(encoded(stored, exif=exif))
    assert shown.size == (24, 16)
    assert shown.tobytes() == upright.tobytes()


def header_of_png(width: int, height: int) -> bytes:
    """A PNG that promises so many pixels in a few bytes."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = (header, b"IDAT" + zlib.compress(b""))
    lengths_and_sums = ((struct.pack(">I", len(c) - 4), struct.pack(">I", zlib.crc32(c))) for c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(n + c + s for c, (n, s) in zip(chunks, lengths_and_sums, strict=True))


BAD_BYTES = {
    "empty": (b"", "empty"),
    "text": (b"not an image at all", "not an image"),
    "truncated png": (encoded(photo(128, 128))[:4000], "cannot be decoded"),
    "truncated jpeg": (encoded(photo(128, 128), "JPEG")[:1500], "cannot be decoded"),
    "damaged png": (encoded(photo(128, 128)).replace(b"IDATx", b"IDATy"), "cannot be decoded"),
    "bomb": (header_of_png(100_000, 100_000), "too many pixels"),
}


@pytest.mark.parametrize("name", BAD_BYTES)
def test_bad_bytes_are_refused_with_their_reason(name: str) -> None:
    data, reason = BAD_BYTES[name]
    with pytest.raises(ValueError, match=reason):
        decode_image(data)


def test_the_limit_of_pixels_is_ours_and_not_pillows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert decode_image(encoded(gradient(10, 10)), max_pixels=100).size == (10, 10)
    with pytest.raises(ValueError, match=r"too many pixels \(10 x 11\), more than dataset.max_image_pixels \(100\)"):
        decode_image(encoded(gradient(10, 11)), max_pixels=100)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # of which Pillow warns, up to twice as many
    assert decode_image(encoded(gradient(10, 15))).size == (10, 15)
    with pytest.raises(ValueError, match="too many pixels"):
        decode_image(encoded(gradient(10, 21)))


def test_the_limit_of_pixels_is_50_million_and_holds_before_decoding() -> None:
    wide = header_of_png(10_001, 5_000)
    with pytest.raises(ValueError, match="too many pixels"):
        decode_image(wide)
    with pytest.raises(DataError, match=r"too many pixels.*; give an image that can be read"):
        load_image(wide)
    with pytest.raises(ValueError, match="cannot be decoded"):
        decode_image(wide, max_pixels=60_000_000)


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_of_the_list_is_read(format: str) -> None:
    assert decode_image(encoded(gradient(16, 16), format)).size == (16, 16)


@pytest.mark.parametrize("format", ["EPS", "TGA", "ICO", "PCX", "SGI", "JPEG2000"])
def test_other_formats_are_refused_whatever_their_name(tmp_path: Path, format: str) -> None:
    path = tmp_path / "0.png"
    path.write_bytes(encoded(gradient(16, 16), format))
    with pytest.raises(DataError, match=r"0\.png: not an image of a known format \(JPEG, PNG"):
        load_image(path)


def test_of_an_animation_the_first_picture_is_taken() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for format in ("GIF", "WEBP", "PNG", "TIFF"):
        data = encoded(frames[0], format, save_all=True, append_images=frames[1:])
        assert decode_image(data).getpixel((4, 4))[0] > 200


def test_files_are_opened_in_one_place_and_with_the_list_of_formats() -> None:
    source = Path(impresa.__file__).parent
    calls = {
        str(file.relative_to(source)): re.findall(r"\bImage\.open\([^\n]*", file.read_text(encoding="utf-8"))
        for file in source.rglob("*.py")
    }
    assert {name: found for name, found in calls.items() if found} == {
        "data/image_files.py": ["Image.open(source, formats=FORMATS)"]
    }


def test_a_sixteen_bit_picture_takes_no_wide_copies() -> None:
    grey = np.arange(2048 * 2048, dtype=np.uint32).reshape(2048, 2048).astype(np.uint16)
    image = Image.fromarray(grey)
    tracemalloc.start()  # numpy reports to it
    shades = np.asarray(decode_image(image))[..., 0]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * grey.size  # in 64-bit integers three copies took 24 bytes for each pixel
    assert np.array_equal(shades, (grey.astype(np.int64) + 128) // 257)


def test_load_image_reads_paths_bytes_and_images(tmp_path: Path) -> None:
    image = gradient(5, 4)
    path = tmp_path / "a.png"
    path.write_bytes(encoded(image))
    for source in (path, str(path), path.read_bytes(), image):
        assert load_image(source).tobytes() == image.tobytes()


def test_load_image_names_the_file_and_the_mend(tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"x")
    with pytest.raises(DataError, match=r"broken\.png: not an image .*; give an image"):
        load_image(broken)
    with pytest.raises(DataError, match=r"missing\.png: No such file or directory; give the path"):
        load_image(tmp_path / "missing.png")


def test_transform_resizes_the_short_side_and_crops_the_centre() -> None:
    tensor = ImageTransform(16, mean=(0, 0, 0), std=(1, 1, 1))(gradient(64, 32))
    assert tensor.shape == (3, 16, 16)
    assert tensor.dtype == torch.float32
    red, green = tensor[0].mean(dim=0), tensor[1].mean(dim=1)
    assert (red[0].item(), red[-1].item()) == pytest.approx((0.25, 0.75), abs=0.03)
    assert (green[0].item(), green[-1].item()) == pytest.approx((0, 1), abs=0.05)


def test_transform_can_squash() -> None:
    red = ImageTransform(16, mean=(0, 0, 0), std=(1, 1, 1), resize="squash")(gradient(64, 32))[0].mean(dim=0)
    assert (red[0].item(), red[-1].item()) == pytest.approx((0, 1), abs=0.05)


def test_transform_equals_resizing_and_cropping_one_after_the_other() -> None:
    image = photo(320, 200)
    resized = image.resize((round(320 * 64 / 200), 64), Image.Resampling.BICUBIC)
    left = (resized.width - 64) // 2
    expected = np.asarray(resized.crop((left, 0, left + 64, 64))).astype(int)
    difference = np.abs(ImageTransform(64).pixels([image])[0].numpy().astype(int) - expected)
    assert difference.mean() < 1.5  # the crop of whole pixels is up to half a pixel off


def test_transform_shrinks_with_antialias() -> None:
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 255
    pixels = ImageTransform(32).pixels([Image.fromarray(stripes)])
    assert pixels.float().std() < 3
    assert pixels.float().mean().item() == pytest.approx(127.5, abs=3)


def test_an_image_of_the_right_size_is_not_resampled() -> None:
    image = photo(64, 64)
    assert ImageTransform(64).pixels([image])[0].numpy().tobytes() == image.tobytes()


def test_normalisation_is_clips() -> None:
    tensor = ImageTransform(2)(Image.new("RGB", (2, 2), (255, 0, 51)))
    expected = [(v - m) / s for v, m, s in zip((1.0, 0.0, 0.2), CLIP_MEAN, CLIP_STD, strict=True)]
    assert tensor[:, 0, 0].tolist() == pytest.approx(expected, abs=1e-6)


def test_a_batch_is_normalised_as_each_image_is() -> None:
    transform, images = ImageTransform(24), [photo(64, 128), gradient(24, 24)]
    batch = transform.normalize(transform.pixels(images))
    assert batch.is_contiguous()
    assert torch.equal(batch, torch.stack([transform(image) for image in images]))


def test_transform_survives_json() -> None:
    transform = ImageTransform(31, mean=(0.1, 0.2, 0.3), resize="squash")
    assert TypeAdapter(ImageTransform).validate_python(transform.to_dict()) == transform


def test_a_jpeg_is_decoded_smaller_only_when_it_is_shrunk_by_far() -> None:
    data = encoded(photo(640, 480), "JPEG", quality=90)
    assert decode_image(data, shrink_to=128).size == (320, 240)
    assert decode_image(data, shrink_to=240).size == (320, 240)
    assert decode_image(data, shrink_to=241).size == (640, 480)
    assert decode_image(encoded(photo(640, 480)), shrink_to=32).size == (640, 480)


def test_decoding_smaller_changes_next_to_nothing() -> None:
    data, transform = encoded(photo(640, 480), "JPEG", quality=90), ImageTransform(64)
    full, small = (transform.pixels([decode_image(data, shrink)]).float() for shrink in (None, 128))
    assert not torch.equal(full, small)
    assert (full - small).abs().mean() < 0.6
