"""The data of a run for Lightning's Trainer. Use it with `use_distributed_sampler=False`: its sampler knows ranks."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import lightning
import torch

from impresa.config.experiment import ExperimentConfig
from impresa.data.bad_samples import BadSampleList
from impresa.data.loading import BatchDataset, BatchLoader, Collate, TrainingView
from impresa.data.preprocessing import Preprocessing
from impresa.data.sampler import BatchSampler
from impresa.data.sources import Reading, Source, open_source, open_train_and_val
from impresa.tasks import task_of

_log = logging.getLogger(__name__)


class DataModule(lightning.LightningDataModule):
    """Training and validation batches of an experiment, and the place in the training data for an exact resume."""

    def __init__(
        self,
        config: ExperimentConfig,
        preprocessing: Preprocessing,
        bad_samples: Path | None = None,
        *,
        train_source: Source | None = None,
        val_source: Source | None = None,
    ) -> None:
        """
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
        super().__init__()
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
        self._train_sampler: BatchSampler | None = None
        self._resume_state: dict[str, Any] | None = None
        if self._config.num_workers == 0 and self._config.persistent_workers:
            _log.info("dataset.num_workers is 0: prefetch_factor and persistent_workers are off")

    def train_dataloader(self) -> BatchLoader[Any]:
        """Shuffled batches of augmented samples; a loaded state is continued."""
        view = TrainingView(
            seed=self._seed,
            augmentation=self._config.augmentation,
            image_size_px=self._image_size_px,
            caption_dropout=self._config.caption_dropout,
            questions_per_image=self._config.questions_per_image,
        )
        sampler = self._sampler(self.train_source, self._config.batch_size, shuffle=True)
        if self._resume_state is not None:
            sampler.load_state_dict(self._resume_state)
        self._train_sampler = sampler
        return self._loader("train", BatchDataset(self.train_source, self._collate, view), sampler)

    def val_dataloader(self) -> BatchLoader[Any]:
        """Batches of samples as they are, with all their questions, in file order."""
        batch_size = self._config.eval_batch_size or self._config.batch_size
        sampler = self._sampler(self.val_source, batch_size, shuffle=False)
        return self._loader("val", BatchDataset(self.val_source, self._collate), sampler)

    def state_dict(self) -> dict[str, Any]:
        """The place in the training data, counted in batches that were used."""
        return self._train_sampler.state_dict() if self._train_sampler else self._resume_state or {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from the place of `state_dict`, at the next `train_dataloader` or in the one that exists."""
        self._resume_state = state_dict or None
        if self._train_sampler and self._resume_state:
            self._train_sampler.load_state_dict(self._resume_state)

    def _sampler(self, source: Source, batch_size: int, *, shuffle: bool) -> BatchSampler:
        return BatchSampler(
            num_samples=len(source),
            batch_size=batch_size,
            seed=self._seed,
            shuffle=shuffle,
            rank=self.trainer.global_rank if self.trainer else 0,
            world_size=self.trainer.world_size if self.trainer else 1,
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
