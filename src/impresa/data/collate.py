"""Samples to a batch of tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from impresa.data.audio import Clip
from impresa.data.batch import Batch, Sample
from impresa.data.images import ImageTransform
from impresa.data.preparation import AudioTransform
from impresa.data.tokenizers import TextBatcher

_SILENCE = Clip(torch.zeros(1), 16_000)


class Collator:
    """Stack the images of samples, normalise them together, tokenize the first caption of each, and turn sounds into
    features.

    With an `audio_transform` any sample may lack any modality: its row is filled and marked as absent. Then every batch
    has all three modalities, so that all processes of a distributed run agree about them. Without one, all samples are
    expected to have the same modalities.
    """

    def __init__(
        self, image_transform: ImageTransform, tokenizer: TextBatcher, audio_transform: AudioTransform | None = None
    ) -> None:
        self._image_transform = image_transform
        self._tokenizer = tokenizer
        self._audio_transform = audio_transform

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        """A batch in the samples' order; a modality that no sample has is None, unless there is a mask for it."""
        batch = Batch(ids=[sample.id for sample in samples], labels=[sample.label for sample in samples])
        if self._audio_transform is None:
            batch.image = stack_images(self._image_transform, samples)
            self._add_captions(batch, [sample.captions[0] for sample in samples if sample.captions])
            return batch
        batch.image_present = mask_of([sample.image is not None for sample in samples])
        batch.text_present = mask_of([bool(sample.captions) for sample in samples])
        batch.audio_present = mask_of([sample.audio is not None for sample in samples])
        batch.image = stack_images(self._image_transform, samples, batch.image_present)
        self._add_captions(batch, [sample.captions[0] if sample.captions else "" for sample in samples])
        batch.audio, batch.audio_mask = stack_sounds(self._audio_transform, samples)
        return batch

    def _add_captions(self, batch: Batch, captions: list[str]) -> None:
        batch.captions = captions
        if captions:
            batch.input_ids, batch.attention_mask = self._tokenizer(captions)


def stack_images(transform: ImageTransform, samples: Sequence[Sample], present: Tensor | None = None) -> Tensor | None:
    """(B, 3, S, S) of B samples: zeros where `present` (B,) says that there is none; None if no sample has one.

    Without `present` samples without an image have no row.
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
