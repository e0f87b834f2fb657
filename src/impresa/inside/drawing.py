"""Maps drawn over the picture that they are of."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from impresa.data.images import ImageTransform

SHOWN_PX = 288
"""Side of a picture that is shown; a smaller one is enlarged."""
COLOURS = "inferno"
_FAINT, _STRONG = 0.25, 0.8
"""Share of the map's colour where the map is zero and where it is largest."""


def seen_square(image: Image.Image, transform: ImageTransform) -> Image.Image:
    """The part of an RGB image that a model sees: cut as the model's preprocessing does it, at a size for the eye."""
    pixels = replace(transform, size=max(SHOWN_PX, transform.size)).pixels([image])[0]
    return Image.fromarray(pixels.numpy())


def marked(image: Image.Image, transform: ImageTransform) -> Image.Image | None:
    """The image as high as a picture that is shown, dark outside of the square that the model sees; None if that is
    all of it."""
    if not transform.share_cut(image.size):
        return None
    width, height = image.size
    scale = SHOWN_PX / height
    whole = image.resize((max(1, round(width * scale)), SHOWN_PX), Image.Resampling.LANCZOS)
    left, top, right, bottom = (round(place * scale) for place in transform.frame(image.size))
    box = (left, top, right, bottom)
    dark = Image.blend(whole, Image.new("RGB", whole.size), 0.6)
    dark.paste(whole.crop(box), box[:2])
    ImageDraw.Draw(dark).rectangle((box[0], box[1], box[2] - 1, box[3] - 1), outline="white", width=2)
    return dark


def overlay(picture: Image.Image, values: Tensor) -> Image.Image:
    """A square picture in grey under the colours of a map (rows, columns), from 0 (dark) to its maximum (bright)."""
    from matplotlib import colormaps

    heat = np.clip(values.numpy(force=True).astype(np.float64), 0, None)
    heat = heat / heat.max() if heat.max() > 0 else heat
    size = picture.size
    spread = Image.fromarray(np.uint8(255 * heat)).resize(size, Image.Resampling.BICUBIC)
    strength = np.asarray(spread, dtype=np.float64)[..., None] / 255
    colours = 255 * colormaps[COLOURS](strength[..., 0])[..., :3]
    grey = np.asarray(picture.convert("L"), dtype=np.float64)[..., None]
    share = _FAINT + (_STRONG - _FAINT) * strength
    return Image.fromarray(np.uint8(np.clip(share * colours + (1 - share) * grey, 0, 255)))
