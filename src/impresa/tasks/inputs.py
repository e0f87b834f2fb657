"""Inputs of a model in use: images and sounds in many forms, brought into the form that the towers take."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from impresa.config.paths import expanded, looked_in
from impresa.config.shard_names import is_address
from impresa.data.audio import Clip, checked_clip, load_audio
from impresa.data.disk import MAX_BYTES, check_size
from impresa.data.images import ImageTransform, load_image
from impresa.data.preprocessing import AudioTransform
from impresa.data.sample import Sample
from impresa.data.tiles import tiles_of
from impresa.errors import DataError
from impresa.tasks.arguments import Inputs, Named, as_whole, has_values, inputs_of, is_number, kind, naming, shown

File = str | os.PathLike[str] | bytes | IO[bytes] | Mapping[str, Any]
"""A file: its path, its content, open for reading bytes, or as `{"bytes": ..., "path": ...}` of the library datasets,
of which one may be None."""

Picture = Image.Image | File | NDArray[np.uint8] | Tensor
"""An image: a file, one that Pillow has opened (of any mode), or its pixels. An array is uint8, (H, W) or (H, W, C); a
uint8 tensor (H, W) or (C, H, W), C is 1, 3 or 4; a float tensor is (3, S, S) and preprocessed already."""

Sound = File | Clip | tuple[NDArray[Any] | Tensor, int] | Mapping[str, Any]
"""A sound: a file, decoded, or samples with their number per second, as a pair or as `{"array": ..., "sampling_rate":
...}`. Samples are (S,), or (C, S) or (S, C) of up to 8 channels, which are averaged; floats about -1 to 1, or integers
of 16 or 32 bits, whose full scale becomes 1."""

_MOST_CHANNELS = 8
_COLOURS = (1, 3, 4)
"""Numbers of channels: grey, RGB, and RGB with opacity."""
_LONGEST_NAME = 120


def images_of(argument: str, images: Any) -> Inputs:
    """The image or images that a user gives as `argument`; a tensor (N, C, H, W) is N of them."""
    return inputs_of(argument, images, _is_one_picture)


def images_in(item: Named) -> list[Named]:
    """The images of an item that may be a list of some, or a tensor (N, C, H, W); of anything else the item itself."""
    value = item.value
    is_list = isinstance(value, list | tuple) or (isinstance(value, Tensor | np.ndarray) and value.ndim == 4)
    if not is_list:
        return [item]
    found = images_of(item.name, value).items
    if not found:
        raise DataError(f"{item.name}: is an empty list; give an image, or None")
    return found


def sounds_of(argument: str, sounds: Any) -> Inputs:
    """The sound or sounds that a user gives as `argument`."""
    return inputs_of(argument, sounds, _is_one_sound)


def pixels_of(images: Iterable[Named | Picture], transform: ImageTransform) -> Tensor:
    """Images as the tower takes them, (N, 3, S, S) float32.

    Raises:
        DataError: an image cannot be read; the line begins with its name.
    """
    return torch.stack([_read("image", image, lambda value: _pixels_of_one(value, transform)) for image in images])


def squares_of(image: Named, transform: ImageTransform, tiles: int) -> list[tuple[Tensor, int, int]]:
    """The squares (3, S, S) of an image that is cut into up to so many tiles, each with its row and column, see `Tile`;
    one that is preprocessed already stays whole. Raises `DataError` as `pixels_of`."""
    name, value = image
    with naming(name):
        if isinstance(value, Tensor) and value.is_floating_point():
            return [(_preprocessed(value, transform.size), 0, 0)]
        found = tiles_of(transform, _picture_of_one(value, transform.size), tiles)
    pixels = transform.normalize(transform.pixels_of_squares([tile.square for tile in found]))
    return [(square, tile.row, tile.column) for square, tile in zip(pixels, found, strict=True)]


def features_of(sounds: Iterable[Named | Sound], transform: AudioTransform) -> tuple[Tensor, Tensor]:
    """Sounds as the tower takes them, up to its longest clip: features (N, F, M) and their mask (N, F).

    Raises:
        DataError: a sound cannot be read; the line begins with its name.
    """
    return transform([_read("sound", sound, lambda value: _clip_of(value, transform.max_seconds)) for sound in sounds])


def small_images(examples: Iterable[Sample], size: int) -> list[Tensor]:
    """(3, h, w) uint8 of all images of the samples, none larger than twice the tower's image size."""
    images = [image.copy() for sample in examples for image in sample.images]
    for image in images:
        image.thumbnail((2 * size, 2 * size))
    return [torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous() for image in images]


def _is_one_picture(images: Any) -> bool:
    if isinstance(images, Tensor | np.ndarray):
        return images.ndim in (2, 3)
    return isinstance(images, Image.Image) or _is_file(images)


def _read(default_name: str, item: Any, read: Callable[[Any], Any]) -> Any:
    name, value = item if isinstance(item, Named) else (default_name, item)
    with naming(name):
        return read(value)


def _pixels_of_one(image: Any, transform: ImageTransform) -> Tensor:
    if isinstance(image, Tensor) and image.is_floating_point():
        return _preprocessed(image, transform.size)
    return transform(_picture_of_one(image, transform.size))


def picture_of(argument: str, image: Any, size: int) -> Image.Image:
    """The one image that a user gives as `argument`, upright and RGB; `size` is that of the model's images.

    Raises:
        DataError: it cannot be read, or is preprocessed already.
    """
    with naming(argument):
        return _picture_of_one(image, size)


def _picture_of_one(image: Any, size: int) -> Image.Image:
    if isinstance(image, Tensor | np.ndarray):
        image = _image_of_array(image, size)
    opened = image if isinstance(image, Image.Image) else _file_of(image)
    if opened is None:
        raise DataError(f"got {kind(image)}; give a path, bytes, an open file, a PIL image, an array or a tensor")
    if isinstance(opened, Image.Image) and 0 in opened.size:
        raise DataError("the image has no pixels; leave it out")
    return load_image(opened)


def _preprocessed(image: Tensor, size: int) -> Tensor:
    if image.shape != (3, size, size) or not has_values(image):
        raise _wrong_pixels(image, size)
    pixels = image.detach().float().cpu()
    if not pixels.isfinite().all():
        raise DataError("the tensor holds numbers that are not finite; preprocess the image again")
    return pixels


def _image_of_array(pixels: NDArray[Any] | Tensor, size: int) -> Image.Image:
    fault = _wrong_pixels(pixels, size)
    if isinstance(pixels, Tensor):
        if pixels.dtype != torch.uint8 or not has_values(pixels):
            raise fault
        pixels = (pixels.movedim(0, -1) if pixels.ndim == 3 else pixels).cpu().numpy()
    if pixels.dtype != np.uint8 or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in _COLOURS)):
        raise fault
    return Image.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels)


def _wrong_pixels(pixels: NDArray[Any] | Tensor, size: int) -> DataError:
    what, shape = ("a tensor", "(3, H, W)") if isinstance(pixels, Tensor) else ("an array", "(H, W, 3)")
    floats = f"(3, {size}, {size}) floats, preprocessed as in training, or " if isinstance(pixels, Tensor) else ""
    fix = f"give {floats}{shape} uint8, 0 to 255"
    return DataError(f"{what} of {pixels.dtype} and shape {tuple(pixels.shape)}; {fix}")


def _is_one_sound(sounds: Any) -> bool:
    if isinstance(sounds, np.ndarray):  # without a rate it is no sound, but it is no list of sounds either
        return bool(sounds.dtype.kind in "fiu")
    return isinstance(sounds, Clip | Tensor) or _is_samples_with_rate(sounds) or _is_file(sounds)


def _clip_of(sound: Any, max_seconds: float) -> Clip:
    if isinstance(sound, Clip):
        return _clip_of_samples(sound.samples, sound.rate_hz)
    if _is_samples_with_rate(sound):
        return _clip_of_samples(*(_samples_and_rate(sound) if isinstance(sound, Mapping) else sound))
    file = _file_of(sound)
    if file is None:
        fix = "give a path, bytes, an open file, or a pair of samples and their number per second"
        raise DataError(f"got {kind(sound)}; {fix}")
    return load_audio(file, max_seconds)


def _clip_of_samples(samples: Any, rate_hz: Any) -> Clip:
    rate = as_whole(rate_hz)
    if rate is None:
        fault = f"{shown(rate_hz)} is no number of samples per second"
        raise DataError(f"{fault}; give a pair of samples and rate, such as (samples, 16000)")
    try:
        return checked_clip(_one_channel(_array_of(samples)), rate)
    except ValueError as error:
        raise DataError(f"the array {error}; leave it out") from error


def _array_of(samples: Any) -> NDArray[np.floating[Any]]:
    """Samples as floats, (S,) or with channels; full scale is 1."""
    try:
        if isinstance(samples, Tensor):
            samples = samples.detach().cpu()
            samples = samples.float() if samples.is_floating_point() else samples
        array = np.asarray(samples)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"the samples are no array but {kind(samples)}; give (S,) floats about -1 to 1") from error
    if array.dtype in (np.int16, np.int32):
        return array / (float(np.iinfo(array.dtype).max) + 1)
    if array.dtype.kind != "f":
        raise DataError(f"samples of {array.dtype}; give floats about -1 to 1, or integers of 16 or 32 bits")
    return array


def _one_channel(samples: NDArray[np.floating[Any]]) -> Tensor:
    """(S,) float32, the mean of the channels if there are some; channels are the shorter side."""
    if samples.ndim == 2 and samples.size and min(samples.shape) <= _MOST_CHANNELS:
        samples = samples.mean(axis=int(np.argmin(samples.shape)))
    if samples.ndim != 1:
        fault = f"samples of shape {samples.shape}"
        raise DataError(f"{fault}; give (S,), or with a side for the channels, {_MOST_CHANNELS} at most")
    with np.errstate(over="ignore"):  # what is too large becomes infinite, which is refused
        return torch.from_numpy(samples.astype(np.float32))


def _is_samples_with_rate(sound: Any) -> bool:
    """True for a dict of samples, or a pair one of whose members is a number."""
    if isinstance(sound, Mapping):
        return "sampling_rate" in sound
    return isinstance(sound, tuple) and len(sound) == 2 and any(is_number(member) for member in sound)


def _samples_and_rate(sound: Mapping[str, Any]) -> tuple[Any, Any]:
    """From a dict of the library datasets, or of transformers' pipelines, which say `raw`."""
    return sound.get("array", sound.get("raw")), sound["sampling_rate"]


def _is_file(source: Any) -> bool:
    is_open = callable(getattr(source, "read", None))
    is_dict = isinstance(source, Mapping) and not source.keys().isdisjoint(("bytes", "path"))
    return is_open or is_dict or isinstance(source, str | os.PathLike | bytes | bytearray | memoryview)


def _file_of(source: Any) -> Path | bytes | None:
    """The path of a file, or its content; None if the source stands for neither."""
    if isinstance(source, Mapping):
        source = source.get("bytes") or source.get("path")
    if isinstance(source, bytes | bytearray | memoryview):
        return bytes(source)
    if callable(getattr(source, "read", None)):
        return _content_of(source)
    if not isinstance(source, str | os.PathLike):
        return None
    path = os.fsdecode(source)
    if not path.strip():
        raise DataError("the path is empty; give that of a file")
    if is_address(path) or path.startswith("data:"):
        fix = "download it, and give the file or its bytes"
        raise DataError(f"{path:.{_LONGEST_NAME}}: is an address and no file; {fix}")
    file = expanded(path)
    if not os.path.lexists(file):
        raise DataError(f"{path:.{_LONGEST_NAME}}: there is no such file; give the path of one{looked_in(file)}")
    return file


def _content_of(file: Any) -> bytes:
    """All of an open file, from its start where it can go back there."""
    try:
        if file.seekable():
            file.seek(0)
        content = file.read(MAX_BYTES + 1)  # a device has no end
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(f"the open file cannot be read ({error}); open it again") from error
    try:
        check_size(len(content), MAX_BYTES)
    except ValueError as error:
        raise DataError(f"the open file {error}; give a smaller one") from error
    if not isinstance(content, bytes):
        raise DataError("the file is open as text; open it with mode 'rb'")
    return content
