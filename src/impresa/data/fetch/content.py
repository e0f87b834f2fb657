"""Downloads, checked before they are kept: its format by its first bytes, its pixels by its header."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from io import BytesIO

from impresa.data.fetch.failure import Failure
from impresa.data.image_files import open_image, suffix_of

_TAIL = 1 << 16
"""Bytes at the end of a file among which its mark of the end lies."""


@dataclass(frozen=True)
class Picture:
    """An image file that can be kept."""

    content: bytes
    suffix: str
    """By its content, without the dot."""
    sha256: str


def picture_of(content: bytes, max_pixels: int) -> Picture:
    """The picture in a downloaded file, whatever the server has called it.

    Raises:
        Failure: it is no image, has too many pixels, or ends early.
    """
    if not content:
        raise Failure("empty file")
    try:
        image = open_image(BytesIO(content), max_pixels)
    except (ValueError, OSError) as error:
        is_large = "too many pixels" in str(error)
        raise Failure("too many pixels" if is_large else "no image of a known format") from error
    if _may_be_cut(image.format, content):
        try:
            image.load()
        except Exception as error:  # the decoders of damaged files raise exceptions of many types
            raise Failure("image ends early", passing=True) from error
    return Picture(content, suffix_of(image), hashlib.sha256(content).hexdigest())


def _may_be_cut(format: str | None, content: bytes) -> bool:
    """True for a file without the mark of its end: it may decode all the same, which costs too much to try always."""
    match format:
        case "JPEG" | "MPO":
            return b"\xff\xd9" not in content[-_TAIL:]
        case "PNG":
            return b"IEND" not in content[-_TAIL:]
        case "WEBP":
            return int.from_bytes(content[4:8], "little") + 8 > len(content)
        case "GIF":
            return b";" not in content[-_TAIL:]
    return False
