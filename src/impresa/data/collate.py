"""Samples to a batch of tensors."""

from __future__ import annotations

from collections.abc import Sequence

from impresa.data.batch import Batch, Sample
from impresa.data.images import ImageTransform
from impresa.data.tokenizers import TextBatcher


class Collator:
    """Stack the images of samples, normalise them together, and tokenize the first caption of each."""

    def __init__(self, image_transform: ImageTransform, tokenizer: TextBatcher) -> None:
        self._image_transform = image_transform
        self._tokenizer = tokenizer

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        """A batch in the samples' order; a modality that no sample has is None."""
        batch = Batch(ids=[sample.id for sample in samples], labels=[sample.label for sample in samples])
        images = [sample.image for sample in samples if sample.image is not None]
        if images:
            batch.image = self._image_transform.normalize(self._image_transform.pixels(images))
        batch.captions = [sample.captions[0] for sample in samples if sample.captions]
        if batch.captions:
            batch.input_ids, batch.attention_mask = self._tokenizer(batch.captions)
        return batch
