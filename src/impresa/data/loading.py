"""Batches from a source: reading and augmenting in workers, bad samples taken out, the place in the data kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from torch.utils.data import DataLoader, Dataset

from impresa.config.experiment import Augmentation
from impresa.data.augmentation import augment
from impresa.data.bad_samples import BadSampleList
from impresa.data.dialogue import Dialogue
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
    """What training draws anew in each epoch. Each draw depends on seed, epoch and sample alone, not on the worker."""

    seed: int
    augmentation: Augmentation
    image_size_px: int
    caption_dropout: float = 0.0
    """Probability of dropping each word of a caption; one word always stays. Questions and answers lose none."""
    questions_per_image: int = 1
    """Dialogues that are drawn of each sample, all different; all of them where there are no more."""

    def __call__(self, sample: Sample, item: Item) -> Sample:
        """The sample with one of its captions, an augmented image, and some of its dialogues."""
        generator = np.random.default_rng((self.seed, *item))
        captions = sample.captions and (sample.captions[int(generator.integers(len(sample.captions)))],)
        image = sample.image and augment(sample.image, self.augmentation, self.image_size_px, generator)
        captions = tuple(self._drop_words(text, generator) for text in captions)
        return replace(sample, image=image, captions=captions, dialogues=self._draw(sample.dialogues, generator))

    def _draw(self, dialogues: tuple[Dialogue, ...], generator: np.random.Generator) -> tuple[Dialogue, ...]:
        order = generator.permutation(len(dialogues))[: self.questions_per_image]
        return tuple(dialogues[number] for number in order)

    def _drop_words(self, caption: str, generator: np.random.Generator) -> str:
        if self.caption_dropout == 0.0:
            return caption
        words = caption.split()
        kept = generator.random(len(words)) >= self.caption_dropout
        kept[generator.integers(len(words))] |= not kept.any()
        return " ".join(word for word, keep in zip(words, kept, strict=True) if keep)


class BatchDataset(Dataset[B]):
    """Reads the samples of one batch and collates the good ones. This is what runs in the workers."""

    def __init__(self, source: Source, collate: Collate[B], view: TrainingView | None = None) -> None:
        """
        Args:
            source: the samples.
            collate: makes the batch.
            view: augmentation and draws of training; None reads samples as they are.
        """
        self._source = source
        self._collate: Collate[B] = collate
        self._view = view

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, item: Item) -> B:
        """A batch of one."""
        return self.__getitems__([item])

    def __getitems__(self, items: list[Item]) -> B:
        """The batch of these items, its bad samples named in `bad`. The DataLoader calls this with a whole batch.

        A batch without any good sample takes the next good one of the source, so that all ranks have a batch to work
        on.

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
        """The batch of the good ones of these items; None if there is none."""
        samples: list[Sample] = []
        for item in items:
            self._read(item, samples, bad)
        if not samples:
            return None
        batch = self._collate(samples)
        bad += batch.bad
        return batch if len(batch) else None

    def _read(self, item: Item, samples: list[Sample], bad: list[tuple[str, str]]) -> None:
        try:
            sample = self._source[item[1]]
        except BadSample as fault:
            bad.append((fault.id, fault.reason))
        else:
            samples.append(self._view(sample, item) if self._view else sample)


class _FaultsAsValues(Dataset[B | DataError]):
    """Hands a `DataError` on as a value: raised in a worker, it would arrive with torch's traceback as its message."""

    def __init__(self, dataset: BatchDataset[B]) -> None:
        self._dataset: BatchDataset[B] = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, item: Item) -> B | DataError:
        return self.__getitems__([item])

    def __getitems__(self, items: list[Item]) -> B | DataError:
        try:
            return self._dataset.__getitems__(items)
        except DataError as fault:
            return fault


class BatchLoader(DataLoader[B]):
    """A DataLoader of whole batches that keeps the list of bad samples and the sampler's place up to date."""

    def __init__(
        self,
        dataset: BatchDataset[B],
        sampler: BatchSampler,
        bad_samples: BadSampleList,
        *,
        num_workers: int,
        prefetch_factor: int,
        persistent_workers: bool,
        pin_memory: bool,
    ) -> None:
        """The arguments after `bad_samples` are torch's; the second and third count only when there are workers."""
        self._places = sampler
        self._bad_samples = bad_samples
        super().__init__(
            _FaultsAsValues(dataset),  # type: ignore[arg-type]
            batch_sampler=sampler,
            collate_fn=_as_it_is,
            num_workers=num_workers,
            prefetch_factor=prefetch_factor if num_workers else None,
            persistent_workers=persistent_workers and num_workers > 0,
            pin_memory=pin_memory,
        )

    def place(self) -> dict[str, Any]:
        """The place in the data, counted in batches that were used, and what it depends on."""
        return self._places.state_dict()

    def __iter__(self) -> Iterator[B]:  # type: ignore[override]
        """The batches of an epoch.

        Raises:
            DataError: too many samples are bad.
        """
        self._places.begin_epoch()
        for batch in super().__iter__():
            if isinstance(batch, DataError):
                raise batch
            self._bad_samples.add(batch.bad)
            self._places.advance()
            yield batch


def _as_it_is(batch: Any) -> Any:
    """The dataset has collated already: it knows which samples of the batch are bad."""
    return batch
