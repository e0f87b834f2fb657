"""The training and validation data of a run, as loaders of batches."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from impresa.config.experiment import ExperimentConfig
from impresa.data.bad_samples import BadSampleList
from impresa.data.loading import BatchDataset, BatchLoader, Collate, TrainingView
from impresa.data.preprocessing import Preprocessing
from impresa.data.sampler import BatchSampler
from impresa.data.sources import Reading, Source, open_source, open_train_and_val
from impresa.tasks import task_of

logger = logging.getLogger(__name__)


class TrainingData:
    """Training and validation batches of an experiment, shared out over processes.

    Args:
        config: the experiment; its `dataset` and `seed` are read. With a `decoder` the samples are questions and
            answers, and the batches are of `DialogueBatch`.
        preprocessing: for texts, images and sounds.
        bad_samples: file that lists what could not be used; None keeps the list in memory.
        train_source: the training data, if they are open already.
        val_source: the validation data, if they are open already.

    Raises:
        DataError: the data cannot be read.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        preprocessing: Preprocessing,
        bad_samples: Path | None = None,
        *,
        train_source: Source | None = None,
        val_source: Source | None = None,
    ) -> None:
        self._config = config.dataset
        self._seed = config.seed
        task = task_of(config)
        self._collate: Collate[Any] = task.collator(preprocessing)
        self._image_size_px = preprocessing.image.size
        self._bad_samples = bad_samples
        seconds = None if preprocessing.audio is None else preprocessing.audio.max_seconds
        reading = Reading(seconds, dialogues=task.answers)
        if train_source is None and val_source is None:
            train_source, val_source = open_train_and_val(config.dataset, reading)
        self.train_source = train_source or open_source(config.dataset, "train", reading)
        self.val_source = val_source or open_source(config.dataset, "val", reading)
        if self._config.num_workers == 0 and self._config.persistent_workers:
            logger.info("dataset.num_workers is 0: prefetch_factor and persistent_workers are off")

    def train_loader(
        self, rank: int = 0, world_size: int = 1, place: Mapping[str, Any] | None = None
    ) -> BatchLoader[Any]:
        """Shuffled batches of augmented samples.

        Args:
            rank: number of this process.
            world_size: number of processes that share the data.
            place: from the loader's `place`: where to continue, for an exact resumption.

        Raises:
            DataError: `place` is in the middle of an epoch over other data.
        """
        view = TrainingView(
            seed=self._seed,
            augmentation=self._config.augmentation,
            image_size_px=self._image_size_px,
            caption_dropout=self._config.caption_dropout,
            questions_per_image=self._config.questions_per_image,
        )
        sampler = self._sampler(self.train_source, self._config.batch_size, rank, world_size, shuffle=True)
        if place is not None:
            sampler.load_state_dict(place)
        return self._loader("train", BatchDataset(self.train_source, self._collate, view), sampler)

    def val_loader(self, rank: int = 0, world_size: int = 1) -> BatchLoader[Any]:
        """Batches of samples as they are, with all their questions, in file order; see `train_loader`."""
        batch_size = self._config.eval_batch_size or self._config.batch_size
        sampler = self._sampler(self.val_source, batch_size, rank, world_size, shuffle=False)
        return self._loader("val", BatchDataset(self.val_source, self._collate), sampler)

    def _sampler(self, source: Source, batch_size: int, rank: int, world_size: int, *, shuffle: bool) -> BatchSampler:
        return BatchSampler(
            num_samples=len(source),
            batch_size=batch_size,
            seed=self._seed,
            shuffle=shuffle,
            rank=rank,
            world_size=world_size,
            blocks=source.blocks(),
        )

    def _loader(self, split: str, dataset: BatchDataset[Any], sampler: BatchSampler) -> BatchLoader[Any]:
        return BatchLoader(
            dataset,
            sampler,
            BadSampleList(self._bad_samples, split, len(dataset), self._config.max_bad_fraction),
            num_workers=self._config.num_workers,
            prefetch_factor=self._config.prefetch_factor,
            persistent_workers=self._config.persistent_workers,
            pin_memory=self._config.pin_memory and torch.cuda.is_available(),
        )
