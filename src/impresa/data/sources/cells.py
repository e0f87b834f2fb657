"""Images and sounds in the cells of a table: finding the file, and reading it."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from PIL import Image

from impresa.config.dataset import DatasetConfig
from impresa.data.audio import Clip, decode_audio
from impresa.data.disk import check_size, open_regular, read_regular
from impresa.data.images import decode_image
from impresa.data.text import is_missing, plain
from impresa.foreign_text import printable

File = bytes | str
"""An image or a sound: its content, or its absolute path."""


def one_file(cell: Any) -> Any:
    """The file of a cell, out of a list of one (also a printed one) and out of a struct; several files are a list."""
    if isinstance(cell, str) and cell.lstrip().startswith("["):
        with suppress(ValueError):
            cell = plain(cell)
    if isinstance(cell, list | tuple):
        files = [file for file in map(one_file, cell) if not is_missing(file)]
        return files if len(files) > 1 else next(iter(files), None)
    return cell.get("bytes") or cell.get("path") if isinstance(cell, dict) else cell


def read_image(file: File, shrink_to_px: int | None, config: DatasetConfig) -> Image.Image:
    max_bytes = config.max_file_mib << 20
    try:
        data = file if isinstance(file, bytes) else read_regular(file, max_bytes)
        check_size(len(data), max_bytes)
    except OSError as error:
        is_gone = isinstance(error, FileNotFoundError) and config.image_root is None
        fix = "; dataset.image_root names another folder of images" if is_gone else ""
        raise ValueError(
            f"the image cannot be read ({error.strerror or error}: {printable(str(file))}){fix}"
        ) from error
    except ValueError as error:
        raise ValueError(f"the image {error}") from error
    return decode_image(data, shrink_to_px, config.max_image_pixels)


def read_sound(file: File, max_seconds: float | None, max_bytes: int) -> Clip:
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
