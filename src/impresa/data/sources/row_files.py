"""The images and sounds that the rows of a table hold or name."""

from __future__ import annotations

from hashlib import blake2b

from PIL import Image

from impresa.config.dataset import DatasetConfig
from impresa.data.audio import Clip, decode_audio
from impresa.data.disk import check_size, open_regular, read_regular
from impresa.data.images import decode_image
from impresa.data.sources.base import FoundImage
from impresa.foreign_text import printable

File = bytes | str
"""An image or a sound: its content, or its absolute path."""


def read_image(file: File, shrink_to_px: int | None, config: DatasetConfig) -> Image.Image:
    """The decoded image, see `decode_image`. Raises `ValueError`; the message is the reason alone."""
    return decode_image(_content(file, config), shrink_to_px, config.max_image_pixels)


def found_image(file: File, shrink_to_px: int | None, config: DatasetConfig) -> FoundImage:
    """The image, read and not decoded. Raises `ValueError` if it cannot be read; the message is the reason alone."""
    data = _content(file, config)
    digest = blake2b(data, digest_size=16, salt=f"{shrink_to_px}".encode()).digest()
    return FoundImage(digest, lambda: decode_image(data, shrink_to_px, config.max_image_pixels))


def _content(file: File, config: DatasetConfig) -> bytes:
    max_bytes = config.max_file_mib << 20
    try:
        data = file if isinstance(file, bytes) else read_regular(file, max_bytes)
        check_size(len(data), max_bytes)
    except OSError as error:
        is_gone, fix = isinstance(error, FileNotFoundError), ""
        if is_gone and "\\" in str(file):
            fix = "; write / in place of \\ in its path"
        elif is_gone and config.image_root is None:
            fix = "; dataset.image_root names another folder of images"
        raise ValueError(
            f"the image cannot be read ({error.strerror or error}: {printable(str(file))}){fix}"
        ) from error
    except ValueError as error:
        raise ValueError(f"the image {error}") from error
    return data


def read_sound(file: File, max_seconds: float | None, max_bytes: int) -> Clip:
    """Up to so many seconds of the sound, decoded. Raises `ValueError`; the message is the reason alone."""
    assert max_seconds is not None  # a row has a sound only where sounds are read
    try:
        if isinstance(file, bytes):
            check_size(len(file), max_bytes)
            return decode_audio(file, max_seconds)
        with open_regular(file, max_bytes) as opened:
            return decode_audio(opened, max_seconds)
    except OSError as error:
        raise ValueError(f"the sound cannot be read ({error.strerror or error})") from error
    except ValueError as error:
        raise ValueError(f"the sound {error}") from error
