"""Random views of training images: three presets, and options that change single parts of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Literal

from annotated_types import Ge, Le
from pydantic import AllowInfNan, Strict

from impresa.config.types import Fraction, Rate, Section

Augmentation = Literal["none", "clip", "strong"]
Area = Annotated[float, Strict(), AllowInfNan(False), Ge(0.01), Le(1)]
Aspect = Annotated[float, Strict(), AllowInfNan(False), Ge(0.1), Le(10)]
Turn = Annotated[float, Strict(), AllowInfNan(False), Ge(0), Le(180)]
Shear = Annotated[float, Strict(), AllowInfNan(False), Ge(0), Le(60)]
Half = Annotated[float, Strict(), AllowInfNan(False), Ge(0), Le(0.5)]


@dataclass(frozen=True, kw_only=True)
class AugmentationOptions(Section):
    """Parts of `augmentation` set by hand; null is what the preset does. Each is drawn for each image and epoch,
    uniformly between its bounds."""

    scale: tuple[Area, Area] | None = None
    """Fraction of the area that a random crop takes, minimum and maximum. null: 0.9 to 1 (`clip`), no random crop but
    the centre square (`strong`)."""
    ratio: tuple[Aspect, Aspect] | None = None
    """Aspect ratio (width by height) of the random crop, minimum and maximum. null: 3/4 to 4/3."""
    horizontal_flip: Fraction | None = None
    """Probability of a horizontal flip; captions that say left and right become wrong. null: 0."""
    rotation_degrees: Turn | None = None
    """Rotation by up to this, each way. null: 0 (`clip`), 15 (`strong`)."""
    shear_degrees: Shear | None = None
    """Shear by up to this, each way. null: 0 (`clip`), 12 (`strong`)."""
    zoom: Rate | None = None
    """Stretched or shrunk by up to this fraction, width and height independently. null: 0 (`clip`), 0.2 (`strong`)."""
    shift: Half | None = None
    """Shift by up to this fraction of the side. null: 0 (`clip`), 0.1 (`strong`)."""
    bend: Half | None = None
    """Nodes of a mesh of 3 x 3 cells move by up to this fraction of the side. null: 0 (`clip`), 0.06 (`strong`)."""
    brightness: Fraction | None = None
    """Brightness times 1 minus this to 1 plus this. null: 0 (`clip`), 0.2 (`strong`)."""
    contrast: Fraction | None = None
    """The same for contrast. null: 0 (`clip`), 0.2 (`strong`)."""
    saturation: Fraction | None = None
    """The same for saturation. null: 0."""
    hue: Half | None = None
    """Hue shift by up to this fraction of the colour circle; captions that name colours become wrong. null: 0."""
    color_jitter_prob: Fraction | None = None
    """Probability of changing brightness, contrast, saturation and hue at all. null: 1."""
    gray_scale_prob: Fraction | None = None
    """Probability of a greyscale picture. null: 0."""


@dataclass(frozen=True, kw_only=True)
class ImageViews:
    """All that decides a random view; the names and units are those of `AugmentationOptions`."""

    scale: tuple[float, float] | None = None
    """None: the centre square."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    horizontal_flip: float = 0.0
    rotation_degrees: float = 0.0
    shear_degrees: float = 0.0
    zoom: float = 0.0
    shift: float = 0.0
    bend: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    color_jitter_prob: float = 1.0
    gray_scale_prob: float = 0.0

    @property
    def warps(self) -> bool:
        return any((self.rotation_degrees, self.shear_degrees, self.zoom, self.shift, self.bend))

    @property
    def recolours(self) -> bool:
        return any((self.brightness, self.contrast, self.saturation, self.hue))


_PRESETS: dict[Augmentation, ImageViews] = {
    "clip": ImageViews(scale=(0.9, 1.0)),
    "strong": ImageViews(
        rotation_degrees=15, shear_degrees=12, zoom=0.2, shift=0.1, bend=0.06, brightness=0.2, contrast=0.2
    ),
}


def views_of(augmentation: Augmentation, options: AugmentationOptions) -> ImageViews | None:
    """The random views of a preset with the options in their place; None where images stay as they are."""
    preset = _PRESETS.get(augmentation)
    chosen = {name: value for name, value in vars(options).items() if value is not None}
    return None if preset is None else replace(preset, **chosen)


def shrink_to_px(image_size: int, augmentation: Augmentation, options: AugmentationOptions, spare: float = 2.0) -> int:
    """Least side of a training image that is shrunk while it is decoded: `spare` times `image_size`, or more where the
    smallest crop would otherwise have to be enlarged."""
    views = views_of(augmentation, options)
    least = 1.0 if views is None or views.scale is None else views.scale[0]
    return round(image_size * max(spare, least**-0.5))
