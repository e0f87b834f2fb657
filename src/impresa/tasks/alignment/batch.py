"""A batch of images, captions and sounds, and how samples become one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, get_args

import torch

from impresa.config.encoder import Modality
from impresa.data.preprocessing import Preprocessing, mask_of, stack_images, stack_kept, stack_sounds
from impresa.data.sample import Sample, TensorBatch


@dataclass
class Batch(TensorBatch):
    """Tensors of B samples with one caption each."""

    input_ids: torch.Tensor | None = None
    """(B, T) int64; T is the longest caption of this batch."""
    attention_mask: torch.Tensor | None = None
    """(B, T) bool; true where there is a token."""
    text_present: torch.Tensor | None = None
    """(B,) bool; true where the sample has a caption, None where all have one."""
    captions: list[str] = field(default_factory=list)
    """The captions behind `input_ids`, length B; empty for a sample without one."""
    negative_ids: torch.Tensor | None = None
    """(Q, T) int64: captions that are wrong for the images of the batch; None where none are trained with, Q = 0 where
    this batch happens to have none."""
    negative_mask: torch.Tensor | None = None
    """(Q, T) bool."""
    negative_keys: list[int] = field(default_factory=list)
    """The number that an equal caption has in `keys`, length Q; numbers, for a tensor would be moved to the GPU."""
    labels: list[str | None] = field(default_factory=list)
    """Class names, length B."""

    def emptied(self) -> Batch:
        """No samples, and no row that is present in a modality."""
        changed: dict[str, Any] = {"captions": [], "labels": [], "negative_keys": []}
        image = self.features if self.image is None else self.image
        for modality, part in {"image": image, "text": self.input_ids, "audio": self.audio}.items():
            if part is not None:
                changed[f"{modality}_present"] = torch.zeros(len(part), dtype=torch.bool)
        if self.negative_ids is not None and self.negative_mask is not None:
            changed |= {"negative_ids": self.negative_ids[:0], "negative_mask": self.negative_mask[:0]}
        return replace(super().emptied(), **changed)

    @property
    def num_tokens(self) -> int:
        masks = (self.attention_mask, self.negative_mask) if self.ids else ()
        return sum(int(mask.sum()) for mask in masks if mask is not None)

    @property
    def present(self) -> dict[Modality, torch.Tensor]:
        return super().present | ({} if self.text_present is None else {"text": self.text_present})


class Collator:
    """Stack the images of samples, normalise them together, tokenize the first caption of each, and turn sounds into
    features.

    With an audio transform any sample may lack any modality: its row is filled and masked as absent. Then every batch
    has all three modalities, so that all processes of a distributed run agree about them. Without one, all samples are
    expected to have the same modalities.

    With negatives the one negative of each sample that has any is added.
    """

    def __init__(self, preprocessing: Preprocessing, *, with_negatives: bool = False) -> None:
        self._preprocessing = preprocessing
        self._with_negatives = with_negatives

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        """A batch in the samples' order; a modality that no sample has is None, unless there is a mask for it."""
        batch = Batch(ids=[sample.id for sample in samples], labels=[sample.label for sample in samples])
        if any(sample.keys for sample in samples):
            for modality in get_args(Modality):
                batch.keys[modality] = torch.tensor([sample.keys.get(modality, 0) for sample in samples])
        image, audio = self._preprocessing.image, self._preprocessing.audio
        if audio is None:
            batch.image, batch.features = stack_images(image, samples), stack_kept(samples)
            self._add_texts(batch, [sample.captions[0] for sample in samples if sample.captions], samples)
            return batch
        batch.image_present = mask_of([sample.has_image for sample in samples])
        batch.text_present = mask_of([bool(sample.captions) for sample in samples])
        batch.audio_present = mask_of([sample.audio is not None for sample in samples])
        batch.features = stack_kept(samples, batch.image_present)
        if batch.features is None:
            batch.image = stack_images(image, samples, batch.image_present)
        self._add_texts(batch, [sample.captions[0] if sample.captions else "" for sample in samples], samples)
        batch.audio, batch.audio_mask = stack_sounds(audio, samples)
        return batch

    def _add_texts(self, batch: Batch, captions: list[str], samples: Sequence[Sample]) -> None:
        """The captions, and the negatives padded to the same length, so that one pass of the tower encodes them all."""
        batch.captions = captions
        if not captions:
            return
        wrong = [sample for sample in samples if sample.negatives] if self._with_negatives else []
        ids, mask = self._preprocessing.texts([*captions, *(sample.negatives[0] for sample in wrong)])
        batch.input_ids, batch.attention_mask = ids[: len(captions)], mask[: len(captions)]
        if self._with_negatives:
            batch.negative_ids, batch.negative_mask = ids[len(captions) :], mask[len(captions) :]
            batch.negative_keys = [sample.negative_key or 0 for sample in wrong]
