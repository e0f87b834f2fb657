"""Batches from a source: reading and augmenting in workers, bad samples left out, the position in the data kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from impresa.config.experiment import Augmentation, DatasetConfig
from impresa.data.augmentation import augment
from impresa.data.bad_samples import BadSampleList
from impresa.data.sample import Sample, TensorBatch
from impresa.data.sampler import BatchSampler, Item
from impresa.data.sources.base import BadSample, Source
from impresa.errors import DataError

_MOST_REPLACEMENTS = 100

B = TypeVar("B", bound=TensorBatch)
Collate = Callable[[Sequence[Sample]], B]
"""Makes a batch of samples; those that it cannot use are named in the batch's `bad`."""


@dataclass(frozen=True)
class TrainingView:
    """The draws of each epoch: caption, augmentation, dialogues. They depend on seed, epoch and sample alone."""

    seed: int
    augmentation: Augmentation
    image_size_px: int
    caption_dropout: float = 0.0
    """Probability of dropping each word of a caption; one word always stays. Questions and answers lose none."""
    questions_per_image: int = 1
    """Dialogues drawn from each sample, all different; all of them where there are no more."""

    def __call__(self, sample: Sample, item: Item) -> Sample:
        """The sample with one of its captions, an augmented image, and some of its dialogues."""
        same_image = self.augmentation == "none" or sample.image is None
        if same_image and self.caption_dropout == 0 and len(sample.captions) < 2 and len(sample.dialogues) < 2:
            return sample  # nothing to draw: making the generator would cost more than all else here
        generator = np.random.default_rng((self.seed, *item))
        captions = sample.captions and (sample.captions[int(generator.integers(len(sample.captions)))],)
        image = sample.image and augment(sample.image, self.augmentation, self.image_size_px, generator)
        captions = tuple(self._drop_words(text, generator) for text in captions)
        order = generator.permutation(len(sample.dialogues))[: self.questions_per_image]
        dialogues = tuple(sample.dialogues[index] for index in order)
        return replace(sample, image=image, captions=captions, dialogues=dialogues)

    def _drop_words(self, caption: str, generator: np.random.Generator) -> str:
        if self.caption_dropout == 0.0:
            return caption
        words = caption.split()
        kept = generator.random(len(words)) >= self.caption_dropout
        kept[generator.integers(len(words))] |= not kept.any()
        return " ".join(word for word, keep in zip(words, kept, strict=True) if keep)


class BatchDataset(Dataset[B]):
    """Reads the samples of one batch and collates the good ones; runs in the workers.

    Args:
        source: the samples.
        collate: makes the batch.
        view: augmentation and draws of training; None reads samples as they are.
    """

    def __init__(self, source: Source, collate: Collate[B], view: TrainingView | None = None) -> None:
        self._source = source
        self._collate: Collate[B] = collate
        self._view = view

    def __len__(self) -> int:
        return len(self._source)

    def __getitems__(self, items: list[Item]) -> B:
        """The batch of these items, its bad samples named in `bad`. The DataLoader calls this with a whole batch.

        A batch without any good sample takes the next good one of the source, so that all ranks have a batch.

        Raises:
            DataError: none of the next hundred samples, or of all, is good either.
        """
        bad: list[tuple[str, str]] = []
        epoch, last = items[-1]
        batch = self._batch(items, bad)
        num_tried = 0
        while batch is None:
            if num_tried == min(_MOST_REPLACEMENTS, len(self)):
                num_bad = len({id for id, _ in bad})
                raise DataError(f"data: {num_bad} samples in a row cannot be used, the first is {': '.join(bad[0])}")
            num_tried += 1
            last = (last + 1) % len(self)
            batch = self._batch([(epoch, last)], bad)
        return replace(batch, bad=bad)

    def _batch(self, items: list[Item], bad: list[tuple[str, str]]) -> B | None:
        """The batch of the good samples among these items; None if there is none."""
        samples: list[Sample] = []
        for item in items:
            try:
                sample = self._source[item[1]]
            except BadSample as fault:
                bad.append((fault.id, fault.reason))
            else:
                samples.append(self._view(sample, item) if self._view else sample)
        if not samples:
            return None
        batch = self._collate(samples)
        bad += batch.bad
        return batch if len(batch) else None


class _ErrorsAsValues(Dataset[B | DataError]):
    """Returns a `DataError` as a value: raised in a worker, it would arrive with torch's traceback as its message."""

    def __init__(self, dataset: BatchDataset[B]) -> None:
        self._dataset: BatchDataset[B] = dataset

    def __getitems__(self, items: list[Item]) -> B | DataError:
        try:
            return self._dataset.__getitems__(items)
        except DataError as fault:
            return fault


class BatchLoader(DataLoader[B]):
    """A DataLoader of whole batches that keeps the list of bad samples and the sampler's position up to date.

    Args:
        dataset: reads and collates a batch.
        sampler: its items.
        bad_samples: the list.
        settings: those of the workers and of pinned memory are read.
    """

    def __init__(
        self, dataset: BatchDataset[B], sampler: BatchSampler, bad_samples: BadSampleList, settings: DatasetConfig
    ) -> None:
        self._positions = sampler
        self._bad_samples = bad_samples
        super().__init__(
            _ErrorsAsValues(dataset),  # type: ignore[arg-type]
            batch_sampler=sampler,
            collate_fn=_collated,
            num_workers=settings.num_workers,
            prefetch_factor=settings.prefetch_factor if settings.num_workers else None,
            persistent_workers=settings.persistent_workers and settings.num_workers > 0,
            pin_memory=settings.pin_memory and torch.cuda.is_available(),
        )

    def check_worker_number_rationality(self) -> None:
        """torch's warning, in each loader and process; a training run says it once, for all of them."""

    def position(self) -> dict[str, Any]:
        """The position in the data, counted in batches that were used, and the sizes that it depends on."""
        return self._positions.state_dict()

    def __iter__(self) -> Iterator[B]:  # type: ignore[override]
        """The batches of an epoch.

        Raises:
            DataError: too many samples are bad.
        """
        self._positions.begin_epoch()
        for batch in super().__iter__():
            if isinstance(batch, DataError):
                raise batch
            self._bad_samples.add(batch.bad)
            self._positions.advance()
            yield batch


def _collated(batch: Any) -> Any:
    """The batch itself, which the dataset has collated already: it knows the bad samples."""
    return batch
