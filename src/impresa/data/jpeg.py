"""The pixels of JPEG files by `simplejpeg`, where it is installed: those that Pillow gives, in less time.

Both are libjpeg-turbo with its accurate settings. Whatever is not plain is left to Pillow, and so is a file with any
fault, so that it is refused, or taken, for the same reasons with and without the package.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_MODES = {"YCbCr": ("RGB", "RGBX"), "Gray": ("L", "GRAY")}
"""Colours of a file that is plain: Pillow's mode for it, and the package's name of how Pillow keeps that in memory."""


def decoded_jpeg(image: Image.Image, data: bytes) -> Image.Image:
    """An opened image with its pixels, at the size that Pillow's `draft` has chosen.

    Args:
        image: what Pillow made of `data`, not yet loaded.
        data: the bytes of the file.

    Returns:
        An image of the same mode, size and `info`; `image` itself, still not loaded, if it is no JPEG, is one of other
        colours (CMYK), cannot be decoded without a complaint, or if there is no `simplejpeg`.
    """
    library = _library() if image.format == "JPEG" else None
    if library is None:
        return image
    try:
        height, width, colours, _ = library.decode_jpeg_header(data)
        mode, name = _MODES[colours]
        is_reduced = image.size != (width, height)
        smallest = {"min_width": image.width, "min_height": image.height, "min_factor": 2} if is_reduced else {}
        pixels = library.decode_jpeg(data, colorspace=name, fastdct=False, fastupsample=False, **smallest)
    except (KeyError, ValueError, MemoryError):
        return image
    if (mode, pixels.shape[:2]) != (image.mode, image.size[::-1]):
        return image
    found = _without_copy(pixels, mode)
    found.info = image.info
    return found


def _without_copy(pixels: NDArray[np.uint8], mode: str) -> Image.Image:
    """An image that uses the memory of an array (H, W, bytes of a pixel)."""
    import pyarrow as pa

    height, width, num_bytes = pixels.shape
    values = pa.Array.from_buffers(pa.uint8(), pixels.size, [None, pa.py_buffer(pixels)])
    shown = values if num_bytes == 1 else pa.FixedSizeListArray.from_arrays(values, num_bytes)
    return Image.fromarrow(shown, mode, (width, height))


def is_there() -> bool:
    """True where the package can be used."""
    return _library() is not None


@cache
def _library() -> Any:
    """The module; None where it is not installed."""
    try:
        import simplejpeg
    except ImportError:
        return None
    return simplejpeg
