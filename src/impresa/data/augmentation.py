"""Random views of images for training. Every draw comes from the generator that is given, so it can be repeated.

A part that a view leaves alone draws nothing, so that an option moves no draw of the others before it.
"""

from __future__ import annotations

from dataclasses import replace
from math import cos, exp, log, radians, sin, sqrt, tan

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from impresa.config.augmentation import Augmentation, AugmentationOptions, ImageViews, views_of
from impresa.data.images import Box, ImageTransform, resample

_CELLS = 3
_AS_PRESET = AugmentationOptions()


def augment(
    image: Image.Image,
    kind: Augmentation,
    transform: ImageTransform,
    generator: np.random.Generator,
    options: AugmentationOptions = _AS_PRESET,
) -> Image.Image:
    """A training view of an RGB image, which becomes a square as `transform` makes squares; S is its `size`.

    - `none`: the image itself.
    - `clip`: a random crop with 0.9 to 1.0 of the area and sides of three to four up to four to three, as open_clip
      trains, resized to (S, S); where `transform` crops nothing, of the square that it makes.
    - `strong`: the square, rotated by up to 15 degrees, sheared by up to 12, zoomed by up to a fifth each way,
      shifted by up to a tenth of the side, bent (the nodes of a mesh of 3 x 3 cells move by up to 6% of the side, after
      the elastic distortions of Simard et al. 2003), with brightness and contrast changed by up to a fifth;
      (S, S). Pixels from outside the picture have the mean colour of its edge.

    None of them flips or changes hues, for captions contain left and right, and colours; `options` can have both, and
    other amounts of all that a preset does.
    """
    views = views_of(kind, options)
    if views is None:
        return image
    if views.scale is None:
        view = replace(transform, crop_fraction=1.0, resample="bicubic").square(image)
    else:
        box = _training_box(image.size, transform, views.scale, views.ratio, generator)
        view = resample(image, transform.size, box, bars=transform.bars)
    if views.warps:
        view = _warp(view, views, generator)
    if views.recolours and (views.color_jitter_prob == 1 or generator.random() < views.color_jitter_prob):
        view = _recolour(view, views, generator)
    if views.gray_scale_prob and generator.random() < views.gray_scale_prob:
        view = view.convert("L").convert("RGB")
    if views.horizontal_flip and generator.random() < views.horizontal_flip:
        view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return view


def _training_box(
    image_size: tuple[int, int],
    transform: ImageTransform,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    generator: np.random.Generator,
) -> Box:
    """Of the image itself where it is cropped anyway, else of its frame, so that no more is lost than from a square."""
    if transform.resize == "crop":
        return _crop_box(image_size, scale, ratio, generator)
    left, top, right, bottom = transform.frame(image_size)
    x0, y0, x1, y1 = _crop_box((1, 1), scale, ratio, generator)
    width, height = right - left, bottom - top
    return left + x0 * width, top + y0 * height, left + x1 * width, top + y1 * height


def _crop_box(
    image_size: tuple[int, int],
    scale: tuple[float, float],
    ratio: tuple[float, float],
    generator: np.random.Generator,
) -> Box:
    width, height = image_size
    area = generator.uniform(*scale)
    # The sides that fit into the image with this area; drawing among them needs no second attempt.
    least, most = max(width / height * area, ratio[0]), min(width / height / area, ratio[1])
    if least > most:  # a long image: the largest centre crop that is not too long
        crop_width, crop_height = min(width, height * ratio[1]), min(height, width / ratio[0])
        left, top = (width - crop_width) / 2, (height - crop_height) / 2
    else:
        aspect = exp(generator.uniform(log(least), log(most)))
        crop_width = min(sqrt(width * height * area * aspect), width)
        crop_height = min(sqrt(width * height * area / aspect), height)
        left, top = generator.uniform(0, width - crop_width), generator.uniform(0, height - crop_height)
    return left, top, left + crop_width, top + crop_height


def _warp(image: Image.Image, views: ImageViews, generator: np.random.Generator) -> Image.Image:
    """Rotate, shear, zoom and shift a square image around its centre, and bend it."""
    size = image.width
    angle = radians(generator.uniform(-views.rotation_degrees, views.rotation_degrees))
    shear = tan(radians(generator.uniform(-views.shear_degrees, views.shear_degrees)))
    zoom_x, zoom_y = generator.uniform(1 - views.zoom, 1 + views.zoom, 2)
    shift = generator.uniform(-views.shift, views.shift, 2) * size
    # Pillow takes the inverse map: from each point of the result to its origin in the image.
    back = np.array(
        [
            [zoom_x * cos(angle), zoom_x * (shear * cos(angle) - sin(angle))],
            [zoom_y * sin(angle), zoom_y * (shear * sin(angle) + cos(angle))],
        ]
    )
    pixels = np.asarray(image)
    edge = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    lines = np.linspace(0, size, _CELLS + 1).round().astype(int)
    points = np.stack(np.meshgrid(lines, lines), axis=-1)  # (rows, columns, 2), as x and y
    centre = size / 2
    origins = (points - centre) @ back.T + centre + shift
    origins += generator.uniform(-views.bend, views.bend, origins.shape) * size
    return image.transform(
        image.size,
        Image.Transform.MESH,
        [_cell(lines, origins, row, column) for row in range(_CELLS) for column in range(_CELLS)],
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


def _recolour(image: Image.Image, views: ImageViews, generator: np.random.Generator) -> Image.Image:
    """Change brightness, contrast, saturation and hue, in this order."""
    changes = (
        (ImageEnhance.Brightness, views.brightness),
        (ImageEnhance.Contrast, views.contrast),
        (ImageEnhance.Color, views.saturation),
    )
    for enhancer, most in changes:
        if most:
            image = enhancer(image).enhance(generator.uniform(1 - most, 1 + most))
    if views.hue:
        hue, *rest = image.convert("HSV").split()
        turn = round(generator.uniform(-views.hue, views.hue) * 256)
        turned = hue.point([(value + turn) % 256 for value in range(256)])
        image = Image.merge("HSV", (turned, *rest)).convert("RGB")
    return image
