"""Images and sounds in the cells of a table: finding the file, and reading it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
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


def files_in(cell: Any) -> list[Any]:
    """The files of a cell that are not missing: of a list (also a printed one) all of them, out of their structs."""
    if isinstance(cell, str) and cell.lstrip().startswith("["):
        with suppress(ValueError):
            cell = plain(cell)
    if isinstance(cell, list | tuple):
        return [file for item in cell for file in files_in(item)]
    file = cell.get("bytes") or cell.get("path") if isinstance(cell, dict) else cell
    return [] if is_missing(file) else [file]


def one_file(cell: Any) -> Any:
    """The file of a cell; several are a list, and None is none."""
    files = files_in(cell)
    return files if len(files) > 1 else next(iter(files), None)


def linked(keys: Iterable[tuple[str, ...]]) -> Iterator[str]:
    """For each item one of its keys: the same for all items that share one, directly or by way of others."""
    items = list(keys)
    parent: dict[str, str] = {}

    def root(key: str) -> str:
        while (above := parent.setdefault(key, key)) != key:
            parent[key] = key = parent[above]  # halving the path
        return key

    for first, *others in items:
        for other in others:
            low, high = sorted((root(first), root(other)))
            parent[high] = low
    return (root(first) for first, *_ in items)


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
