"""Images in, tensors out: decoding of files in the common formats, and the transform without random parts.

Decoding and resizing give 8-bit pixels, and normalisation is one multiplication and one addition on a whole batch, so
that a worker handles a quarter of the bytes that float images would need.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from impresa.config.dataset import Resize
from impresa.config.locations import TIMM
from impresa.data.batch_memory import new_tensor
from impresa.data.disk import MAX_BYTES, read_regular
from impresa.data.image_files import MAX_PIXELS, open_image
from impresa.data.jpeg import decoded_jpeg
from impresa.errors import ConfigError, DataError
from impresa.hub import from_pretrained, import_optional, reading
from impresa.json_files import first_fault

Resampling = Literal["lanczos", "bilinear", "bicubic"]
Box = tuple[float, float, float, float]
"""Left, top, right and bottom, in pixels of an image."""

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Mean and standard deviation of each colour that CLIP normalises with (Radford et al., 2021)."""
_BACKBONE = "vision_encoder.backbone"
_FILTERS: dict[int, Resampling] = {1: "lanczos", 2: "bilinear", 3: "bicubic"}
"""Pillow's numbers of its resampling filters."""
_PIXELS_AT_ONCE = 1 << 20
"""Of a grey picture with more than 8 bits, so that no wide copy of it is made."""


Share = Annotated[float, Field(ge=0, le=1)]
Deviation = Annotated[float, Field(ge=1e-3, le=1e3)]


@dataclass(frozen=True)
class ImageTransform:
    """The preprocessing of evaluation and use: resizing to a square, then normalisation per colour."""

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid")
    size: Annotated[int, Field(ge=1, le=8192)]
    """Side of the square in pixels."""
    mean: tuple[Share, Share, Share] = CLIP_MEAN
    """Subtracted from red, green and blue in 0 to 1."""
    std: tuple[Deviation, Deviation, Deviation] = CLIP_STD
    """Divides the difference."""
    resize: Resize = "crop"
    """`crop`: the centre square, to `size`; `pad`: the whole image, its long side to `size`, between bars of the colour
    `mean`; `squash`: the whole image, both sides to `size`."""
    crop_fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    """crop: side of the centre square as a part of the short side."""
    resample: Resampling = "bicubic"
    """Filter of the resizing, always with antialias."""

    def __call__(self, image: Image.Image) -> torch.Tensor:
        """(3, S, S) float32 of an RGB image."""
        return self.normalize(self.pixels([image]))[0]

    def pixels(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """(B, S, S, 3) uint8 of RGB images; an image that has the right size already is not resampled."""
        return self.pixels_of_squares(list(map(self.square, images)))

    def pixels_of_squares(self, squares: Sequence[Image.Image]) -> torch.Tensor:
        """The same of RGB images that are squares of the right size."""
        data = bytearray().join(square.tobytes() for square in squares)
        return torch.frombuffer(data, dtype=torch.uint8).view(len(squares), self.size, self.size, 3)

    def normalize(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, S, S, 3) uint8 to (B, 3, S, S) float32."""
        scale = torch.tensor([1 / (255 * s) for s in self.std], dtype=torch.float32).view(3, 1, 1)
        shifts = [-m / s for m, s in zip(self.mean, self.std, strict=True)]
        shift = torch.tensor(shifts, dtype=torch.float32).view(3, 1, 1)
        planes = pixels.permute(0, 3, 1, 2).contiguous()
        return new_tensor(*planes.shape).copy_(planes).mul_(scale).add_(shift)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        return asdict(self)

    @property
    def bars(self) -> tuple[int, int, int]:
        """Red, green and blue of what lies beyond the image; normalised it is zero."""
        red, green, blue = (round(255 * share) for share in self.mean)
        return red, green, blue

    def square(self, image: Image.Image) -> Image.Image:
        """An RGB image as the model sees it, S by S, before normalisation."""
        return resample(image, self.size, self.frame(image.size), self.resample, self.bars)

    def frame(self, image_size: tuple[int, int], aspect: float = 1.0) -> Box:
        """The part of an image (width, height) that becomes the square, or a rectangle `aspect` times as wide as high;
        with `pad` it reaches beyond the image."""
        width, height = image_size
        if self.resize == "squash":
            return 0, 0, width, height
        wide = height * aspect
        span = max(width, wide) if self.resize == "pad" else min(width, wide) * self.crop_fraction
        left, top = (width - span) / 2, (height - span / aspect) / 2
        return left, top, left + span, top + span / aspect

    def share_cut(self, image_size: tuple[int, int], aspect: float = 1.0) -> float:
        """Part of the area of an image (width, height), 0 to 1, that the square, or the rectangle, leaves out."""
        left, top, right, bottom = self.frame(image_size, aspect)
        return max(0.0, 1 - (right - left) * (bottom - top) / (image_size[0] * image_size[1]))


def resample(
    image: Image.Image, size: int, box: Box, how: Resampling = "bicubic", bars: tuple[int, int, int] = (0, 0, 0)
) -> Image.Image:
    """The part of an image within `box` as a square of side `size` pixels, antialiased; of the colour `bars` where the
    box reaches beyond the image."""
    if image.size == (size, size) and box == (0, 0, size, size):
        return image
    spans = (box[2] - box[0], box[3] - box[1])
    low = [max(0.0, start) for start in box[:2]]
    high = [min(float(side), end) for side, end in zip(image.size, box[2:], strict=True)]
    kept = [end - start for start, end in zip(low, high, strict=True)]
    fits = [max(1, round(size * part / span)) for part, span in zip(kept, spans, strict=True)]
    part = image.resize((fits[0], fits[1]), Image.Resampling[how.upper()], box=(low[0], low[1], high[0], high[1]))
    if part.size == (size, size):
        return part
    slack = [max(span - part, 1e-9) for part, span in zip(kept, spans, strict=True)]
    before = [(start - edge) / rest for start, edge, rest in zip(low, box[:2], slack, strict=True)]
    square = Image.new("RGB", (size, size), bars)
    square.paste(part, (round((size - fits[0]) * before[0]), round((size - fits[1]) * before[1])))
    return square


def pretrained_image_transform(name: str, image_size: int) -> ImageTransform:
    """The preprocessing of a pretrained tower's own image processor, at another size.

    Args:
        name: a Hugging Face id, a path, or `timm:NAME`.
        image_size: side of the square in pixels.

    Raises:
        ConfigError: the image processor is missing, or uses an unknown filter.
    """
    if name.startswith(TIMM):
        timm = import_optional(_BACKBONE, "timm", "timm", user=name)
        with reading(_BACKBONE, name):
            own = timm.create_model(name.removeprefix(TIMM), pretrained=False).pretrained_cfg
        if own["interpolation"] not in get_args(Resampling):
            raise _unknown_filter(name, own["interpolation"])
        squashes = own["crop_mode"] == "squash"
        return _checked(
            name,
            ImageTransform(
                size=image_size,
                mean=_colours(own["mean"]),
                std=_colours(own["std"]),
                resize="squash" if squashes else "crop",
                crop_fraction=1.0 if squashes else own["crop_pct"],
                resample=own["interpolation"],
            ),
        )
    from transformers import AutoImageProcessor

    with reading(_BACKBONE, name):
        own = from_pretrained(AutoImageProcessor, name, backend="pil")
    if own.resample not in _FILTERS:
        raise _unknown_filter(name, f"Pillow's filter {int(own.resample)}")
    crops = bool(getattr(own, "do_center_crop", False))
    with reading(_BACKBONE, name):
        found = ImageTransform(
            size=image_size,
            mean=_colours(own.image_mean) if own.do_normalize else (0.0, 0.0, 0.0),
            std=_colours(own.image_std) if own.do_normalize else (1.0, 1.0, 1.0),
            resize="crop" if crops or own.size.height is None else "squash",
            crop_fraction=own.crop_size.height / (own.size.shortest_edge or own.size.height) if crops else 1.0,
            resample=_FILTERS[own.resample],
        )
    return _checked(name, found)


def _checked(name: str, transform: ImageTransform) -> ImageTransform:
    """The same, within the bounds that its own run will be read with."""
    try:
        return TypeAdapter(ImageTransform).validate_python(asdict(transform))
    except ValidationError as error:
        raise ConfigError(f"{_BACKBONE}: {name} prepares images oddly ({first_fault(error)}); use another") from error


def _unknown_filter(name: str, filter: str) -> ConfigError:
    return ConfigError(f"{_BACKBONE}: {name} resizes with {filter}; ours are {', '.join(get_args(Resampling))}")


def _colours(values: Sequence[float]) -> tuple[float, float, float]:
    red, green, blue = map(float, values)
    return red, green, blue


def load_image(source: Path | str | bytes | Image.Image, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Open and decode an image (a path, the bytes of a file, or an open image) as `decode_image` does.

    Raises:
        DataError: the file is missing, no regular file, larger than 256 MiB, empty, damaged, of no known format, or has
            more than `max_pixels` pixels.
    """
    name, data = "image", source
    try:
        if isinstance(data, str | Path):
            name = str(data)
            data = read_regular(data, MAX_BYTES)
        return decode_image(data, max_pixels=max_pixels)
    except OSError as error:
        raise DataError(f"{name}: {error.strerror or error}; give the path of an image file") from error
    except ValueError as error:
        raise DataError(f"{name}: {error}; give an image that can be read") from error


def decode_image(data: bytes | Image.Image, shrink_to: int | None = None, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode an image file's bytes (or an open image) to an upright RGB image.

    EXIF orientation is applied; transparency is laid over white; 16-bit and float greys are scaled to 8 bits; of an
    animation the first picture is taken. With `shrink_to` a JPEG is decoded at the least of the whole, a half, a
    quarter and an eighth of its size that has no side below so many pixels.

    Raises:
        ValueError: the bytes are empty, damaged, of none of the `FORMATS`, or of more than `max_pixels` pixels; the
            message is the reason alone.
    """
    if isinstance(data, bytes) and not data:
        raise ValueError("the image is empty (0 bytes)")
    try:
        image = open_image(BytesIO(data), max_pixels) if isinstance(data, bytes) else data
    except OSError as error:
        raise ValueError(f"the image cannot be decoded ({error})") from error
    try:
        if shrink_to is not None:
            image.draft(None, (shrink_to, shrink_to))
        if isinstance(data, bytes):  # nobody else has the image: that spares a copy
            image = decoded_jpeg(image, data)
            ImageOps.exif_transpose(image, in_place=True)
        else:
            image = ImageOps.exif_transpose(image)
        return _to_rgb(image)
    except MemoryError as error:
        raise ValueError("the image needs more memory than there is") from error
    except Exception as error:  # the decoders of damaged files raise exceptions of many types
        raise ValueError(f"the image cannot be decoded ({error})") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_eight_bits(np.asarray(image))).convert("RGB")
    if image.mode == "La":  # premultiplied grey, which Pillow turns into nothing else
        image = image.convert("LA")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    is_ours = type(image) is Image.Image and image.mode == "RGB"  # a copy would take a tenth of the time of a JPEG
    return image if is_ours else image.convert("RGB")


def _eight_bits(grey: NDArray[Any]) -> NDArray[np.uint8]:
    """Integers have the range of 16 bits; floats that of 0 to 1, or of 0 to 255 if any is above 1."""
    shades = np.empty(grey.shape, np.uint8)
    pieces = [slice(start, start + _PIXELS_AT_ONCE) for start in range(0, grey.size, _PIXELS_AT_ONCE)]
    wide, narrow = grey.reshape(-1), shades.reshape(-1)
    if np.issubdtype(grey.dtype, np.integer):
        for piece in pieces:
            narrow[piece] = (wide[piece].clip(0, 65535).astype(np.int32) + 128) // 257
        return shades
    top = 255.0 if max((np.nan_to_num(wide[piece]).max() for piece in pieces), default=0) <= 1 else 1.0
    for piece in pieces:
        narrow[piece] = np.rint(np.nan_to_num(wide[piece]) * top).clip(0, 255)
    return shades
