"""Random views of images for training. Every draw comes from the generator that is given, so it can be repeated.

There is no flip and no change of hue in any of them: captions contain left and right, and colours.
"""

from __future__ import annotations

from dataclasses import replace
from math import cos, exp, log, radians, sin, sqrt, tan

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from impresa.config.dataset import Augmentation
from impresa.data.images import Box, ImageTransform, resample

_CROP_AREA = (0.9, 1.0)
_CROP_ASPECT = (3 / 4, 4 / 3)
_STRONG_ROTATION_DEGREES = 15.0
_STRONG_SHEAR_DEGREES = 12.0
_STRONG_ZOOM = 0.2
_STRONG_SHIFT = 0.1
_STRONG_LIGHT = 0.2
_STRONG_CELLS = 3
_STRONG_BEND = 0.06


def augment(
    image: Image.Image, kind: Augmentation, transform: ImageTransform, generator: np.random.Generator
) -> Image.Image:
    """A training view of an RGB image, which becomes a square as `transform` makes squares; S is its `size`.

    - `none`: the image itself.
    - `clip`: a random crop with 0.9 to 1.0 of the area and sides of three to four up to four to three, as open_clip
      trains, resized to (S, S); where `transform` crops nothing, of the square that it makes.
    - `strong`: the square, rotated by up to 15 degrees, sheared by up to 12, zoomed by up to a fifth each way,
      shifted by up to a tenth of the side, bent (the nodes of a mesh of 3 x 3 cells move by up to 6% of the side, after
      the elastic distortions of Simard et al. 2003), with brightness and contrast changed by up to a fifth;
      (S, S). Pixels from outside the picture have the mean colour of its edge.
    """
    match kind:
        case "none":
            return image
        case "clip":
            return resample(image, transform.size, _training_box(image.size, transform, generator), bars=transform.bars)
        case "strong":
            plain = replace(transform, crop_fraction=1.0, resample="bicubic")
            warped = _warp(plain.square(image), generator)
            brightness, contrast = generator.uniform(1 - _STRONG_LIGHT, 1 + _STRONG_LIGHT, 2)
            return ImageEnhance.Contrast(ImageEnhance.Brightness(warped).enhance(brightness)).enhance(contrast)


def _training_box(image_size: tuple[int, int], transform: ImageTransform, generator: np.random.Generator) -> Box:
    """Of the image itself where it is cropped anyway, else of its frame, so that no more is lost than from a square."""
    if transform.resize == "crop":
        return _crop_box(image_size, generator)
    left, top, right, bottom = transform.frame(image_size)
    x0, y0, x1, y1 = _crop_box((1, 1), generator)
    width, height = right - left, bottom - top
    return left + x0 * width, top + y0 * height, left + x1 * width, top + y1 * height


def _crop_box(image_size: tuple[int, int], generator: np.random.Generator) -> Box:
    width, height = image_size
    area = generator.uniform(*_CROP_AREA)
    # The sides that fit into the image with this area; drawing among them needs no second attempt.
    least, most = max(width / height * area, _CROP_ASPECT[0]), min(width / height / area, _CROP_ASPECT[1])
    if least > most:  # a long image: the largest centre crop that is not too long
        crop_width, crop_height = min(width, height * _CROP_ASPECT[1]), min(height, width / _CROP_ASPECT[0])
        left, top = (width - crop_width) / 2, (height - crop_height) / 2
    else:
        aspect = exp(generator.uniform(log(least), log(most)))
        crop_width = min(sqrt(width * height * area * aspect), width)
        crop_height = min(sqrt(width * height * area / aspect), height)
        left, top = generator.uniform(0, width - crop_width), generator.uniform(0, height - crop_height)
    return left, top, left + crop_width, top + crop_height


def _warp(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    """Rotate, shear, zoom and shift a square image around its centre, and bend it."""
    size = image.width
    angle = radians(generator.uniform(-_STRONG_ROTATION_DEGREES, _STRONG_ROTATION_DEGREES))
    shear = tan(radians(generator.uniform(-_STRONG_SHEAR_DEGREES, _STRONG_SHEAR_DEGREES)))
    zoom_x, zoom_y = generator.uniform(1 - _STRONG_ZOOM, 1 + _STRONG_ZOOM, 2)
    shift = generator.uniform(-_STRONG_SHIFT, _STRONG_SHIFT, 2) * size
    # Pillow takes the inverse map: from each point of the result to its origin in the image.
    back = np.array(
        [
            [zoom_x * cos(angle), zoom_x * (shear * cos(angle) - sin(angle))],
            [zoom_y * sin(angle), zoom_y * (shear * sin(angle) + cos(angle))],
        ]
    )
    pixels = np.asarray(image)
    edge = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    lines = np.linspace(0, size, _STRONG_CELLS + 1).round().astype(int)
    points = np.stack(np.meshgrid(lines, lines), axis=-1)  # (rows, columns, 2), as x and y
    centre = size / 2
    origins = (points - centre) @ back.T + centre + shift
    origins += generator.uniform(-_STRONG_BEND, _STRONG_BEND, origins.shape) * size
    return image.transform(
        image.size,
        Image.Transform.MESH,
        [_cell(lines, origins, row, column) for row in range(_STRONG_CELLS) for column in range(_STRONG_CELLS)],
        resample=Image.Resampling.BICUBIC,
        fillcolor=tuple(int(value) for value in edge.mean(axis=0).round()),
    )


def _cell(
    lines: NDArray[np.int64], origins: NDArray[np.float64], row: int, column: int
) -> tuple[tuple[int, int, int, int], tuple[float, ...]]:
    """One cell of the mesh: its box in the result, and the origins of its corners, counterclockwise."""
    box = (int(lines[column]), int(lines[row]), int(lines[column + 1]), int(lines[row + 1]))
    corners = (origins[row, column], origins[row + 1, column], origins[row + 1, column + 1], origins[row, column + 1])
    return box, tuple(float(value) for corner in corners for value in corner)
