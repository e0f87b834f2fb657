"""Rows of tensors from the images and sounds of samples, some of which may lack either."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from impresa.data.audio import Clip
from impresa.data.images import ImageTransform
from impresa.data.preprocessing import AudioTransform
from impresa.data.sample import Sample

_SILENCE = Clip(torch.zeros(1), 16_000)


def stack_images(transform: ImageTransform, samples: Sequence[Sample], present: Tensor | None = None) -> Tensor | None:
    """(B, 3, S, S) of B samples: zeros where `present` (B,) is false; None if no sample has an image.

    Without `present`, samples without an image have no row.
    """
    images = [sample.image for sample in samples if sample.image is not None]
    return image_rows(transform, transform.pixels(images) if images else None, present)


def image_rows(transform: ImageTransform, pixels: Tensor | None, present: Tensor | None = None) -> Tensor | None:
    """The same from the pixels (K, S, S, 3) of the K samples that have an image; None stands for K = 0."""
    images = None if pixels is None else transform.normalize(pixels)
    if present is None:
        return images
    rows = torch.zeros(len(present), 3, transform.size, transform.size)
    if images is not None:
        rows[present] = images
    return rows


def stack_sounds(transform: AudioTransform, samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
    """Features (B, F, M) of B samples and their mask (B, F); a sample without a sound is silent."""
    return transform([sample.audio or _SILENCE for sample in samples])


def mask_of(present: list[bool]) -> Tensor | None:
    """(B,) bool, or None where nothing is absent."""
    return None if all(present) else torch.tensor(present)
