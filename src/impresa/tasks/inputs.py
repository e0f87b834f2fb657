"""Inputs of a model in use: images and sounds in many forms, brought into the form that the towers take."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from impresa.data.audio import Clip, checked_clip, load_audio
from impresa.data.images import ImageTransform, load_image
from impresa.data.preprocessing import AudioTransform
from impresa.data.sample import Sample
from impresa.errors import DataError

Picture = Image.Image | str | Path | Tensor
"""An image: open, as a path, or as a tensor. A float tensor is (3, S, S) and preprocessed already; a uint8 tensor is
(3, H, W), raw RGB."""

Sound = Clip | str | Path | tuple[np.ndarray | Tensor, int]
"""A sound: decoded, as a path, or as an array of samples (S,), about -1 to 1, with their number per second."""


def is_one_picture(images: object) -> bool:
    """True for a single image, false for several."""
    return (isinstance(images, Tensor) and images.ndim == 3) or isinstance(images, Image.Image | str | Path)


def pixels_of(images: Iterable[Picture], transform: ImageTransform) -> Tensor:
    """Images as the tower takes them, (N, 3, S, S) float32."""
    return torch.stack([_pixels_of_one(image, transform) for image in images])


def _pixels_of_one(image: Picture, transform: ImageTransform) -> Tensor:
    if not isinstance(image, Tensor):
        return transform(load_image(image))
    size = transform.size
    if image.dtype == torch.uint8 and image.ndim == 3 and image.shape[0] == 3:
        return transform(Image.fromarray(image.permute(1, 2, 0).cpu().numpy()))
    if image.is_floating_point() and image.shape == (3, size, size):
        return image.float().cpu()
    fault = f"image: a tensor of {image.dtype} and shape {tuple(image.shape)}"
    raise DataError(f"{fault}; give (3, {size}, {size}) floats, preprocessed as in training, or (3, H, W) uint8")


def features_of(sounds: Iterable[Sound], transform: AudioTransform) -> tuple[Tensor, Tensor]:
    """Sounds as the tower takes them, up to its longest clip: features (N, F, M) and their mask (N, F)."""
    return transform([_clip_of(sound, transform.max_seconds) for sound in sounds])


def _clip_of(sound: Sound, max_seconds: float) -> Clip:
    if isinstance(sound, Clip):
        return sound
    if isinstance(sound, str | Path):
        return load_audio(sound, max_seconds)
    if not is_array_with_rate(sound):
        fault = f"sound: got {type(sound).__name__}"
        raise DataError(f"{fault}; give a path, or a pair of samples and their number per second")
    samples, rate_hz = torch.as_tensor(sound[0]), int(sound[1])
    if samples.ndim != 1 or not samples.is_floating_point() or rate_hz < 1:
        fault = f"sound: samples of {samples.dtype} and shape {tuple(samples.shape)} at {rate_hz} Hz"
        raise DataError(f"{fault}; give (S,) floats of one channel, about -1 to 1, and a positive rate")
    try:
        return checked_clip(samples.detach().cpu().float(), rate_hz)
    except ValueError as error:
        raise DataError(f"sound: an array {error}; leave it out") from error


def is_array_with_rate(sound: object) -> bool:
    """True for a pair of samples and their number per second."""
    return isinstance(sound, tuple) and len(sound) == 2 and isinstance(sound[1], int | np.integer)


def small_images(examples: Iterable[Sample], size: int) -> list[Tensor]:
    """(3, h, w) uint8 of the images of those samples that have one, none larger than twice the tower's image size."""
    images = [sample.image.copy() for sample in examples if sample.image is not None]
    for image in images:
        image.thumbnail((2 * size, 2 * size))
    return [torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous() for image in images]
