"""Opening image files: the formats that are read, and the number of pixels, before anything is decoded.

Nothing here imports torch.
"""

from __future__ import annotations

import warnings
from io import BytesIO
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from impresa.config.dataset import DatasetConfig

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
"""The formats that are opened, by the content of a file. Pillow knows more, of which some start other programs."""
MAX_PIXELS = DatasetConfig.max_image_pixels
"""Pixels of an image at most, where no config says otherwise."""


def image_suffixes() -> set[str]:
    """Suffixes of image files of the `FORMATS`, in lower case, each with its dot."""
    return {suffix for suffix, name in Image.registered_extensions().items() if name in FORMATS}


def suffix_of(image: Image.Image) -> str:
    """The usual suffix of an opened image file, by its content and without the dot. A JPEG file with further pictures
    in it is MPO to Pillow."""
    format = image.format or "JPEG"
    return {"JPEG": "jpg", "MPO": "jpg", "TIFF": "tif"}.get(format, format.lower())


def open_image(source: Path | BytesIO, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """An image file of one of the `FORMATS`, of which only the header has been read.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is damaged, of no such format, or has too many pixels; the message is the reason alone.
    """
    fault = f"more than dataset.max_image_pixels ({max_pixels})"
    try:
        with warnings.catch_warnings():
            # Pillow's limit is not ours: it warns above 89 million pixels, and refuses twice as many.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(source, formats=FORMATS)
    except UnidentifiedImageError as error:
        raise ValueError(f"not an image of a known format ({', '.join(FORMATS)})") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"the image has too many pixels, {fault}") from error
    except OSError:
        raise
    except Exception as error:  # the readers of damaged headers raise exceptions of many types
        raise ValueError(f"the image cannot be decoded ({error})") from error
    if image.width * image.height > max_pixels:
        raise ValueError(f"the image has too many pixels ({image.width} x {image.height}), {fault}")
    return image
