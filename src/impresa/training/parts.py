"""From a config to the parts that training joins: task, preprocessing, data, model."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from impresa.config.dataset import DatasetConfig
from impresa.config.experiment import ExperimentConfig
from impresa.data.bad_samples import BadSampleList
from impresa.data.kept_features import KeptSource
from impresa.data.loading import BatchDataset, BatchLoader, Collate, TrainingView, View, identified
from impresa.data.preprocessing import Preprocessing
from impresa.data.sampler import BatchSampler, BlockSampler
from impresa.data.sources import Source, open_train_and_val, reading_of
from impresa.data.sources.groups import groups_of
from impresa.data.sources.text_lengths import text_lengths
from impresa.decoders.quantization import num_weights
from impresa.run_dir.environment import num_cores
from impresa.run_dir.layout import BAD_SAMPLES
from impresa.tasks import task_of
from impresa.tasks.base import Task, TrainableModel
from impresa.training.processes import this_process

logger = logging.getLogger(__name__)


class TrainingData:
    """Training and validation batches of an experiment, shared out over processes.

    Args:
        config: the experiment; its `dataset` and `seed` are read. With a `decoder` the samples are questions and
            answers, and the batches are of `DialogueBatch`.
        preprocessing: for texts, images and sounds.
        bad_samples: file that lists unusable samples; None keeps the list in memory.
        sources: training and validation data, if they are open already.

    Raises:
        DataError: the data cannot be read.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        preprocessing: Preprocessing,
        bad_samples: Path | None = None,
        sources: tuple[Source, Source] | None = None,
    ) -> None:
        self._config = config.dataset
        self._seed = config.seed
        self._task = task_of(config)
        self._identifies = config.losses.duplicates == "positive" and not self._task.answers
        self._collate: Collate[Any] = self._task.collator(preprocessing)
        self._image = preprocessing.image
        self._bad_samples = bad_samples
        self.train_source, self.val_source = sources or open_train_and_val(config.dataset, reading_of(config))
        self.kept_sources: tuple[KeptSource, ...] = ()
        """Training and validation data as batches are made of them, where `dataset.cache_features` is set."""
        if config.dataset.cache_features is not None:
            self.kept_sources = KeptSource(self.train_source), KeptSource(self.val_source)
        self._groups = groups_of(self.train_source, self._config.group_column)
        self._lengths: NDArray[np.float64] | None = None
        if self._config.batch_by_length:
            self._lengths = text_lengths(self.train_source, self._config.questions_per_image)
        _say_if_too_many_workers(self._config)

    def num_train_batches(self, world_size: int = 1) -> int:
        """Batches of an epoch of training data, the same for each of the processes that share them."""
        return len(self._train_sampler(0, world_size))

    def train_loader(
        self, rank: int = 0, world_size: int = 1, position: Mapping[str, Any] | None = None
    ) -> BatchLoader[Any]:
        """Shuffled batches of augmented samples for one of the processes that share the data.

        They continue where a loader's `position` was taken; a `DataError` if that is in the middle of an epoch over
        other data.
        """
        sampler = self._train_sampler(rank, world_size)
        if position is not None:
            sampler.load_state_dict(position)
        return self._loader("train", self._batched[0], sampler, self.training_view(), sampler.least)

    def training_view(self) -> TrainingView:
        """How batches of training see a sample."""
        config = self._config
        draws = (config.augmentation, self._image, config.caption_dropout, config.questions_per_image)
        return TrainingView(
            self._seed,
            *draws,
            augmentation_options=config.augmentation_options,
            audio_augmentation=config.audio_augmentation,
            identifies=self._identifies,
        )

    def val_loader(self, rank: int = 0, world_size: int = 1) -> BatchLoader[Any]:
        """Batches of samples as they are, with all their questions, in file order, the same for any number of processes
        that share them."""
        batch_size = self._config.eval_batch_size or self._config.batch_size
        sampler = BlockSampler(
            num_samples=len(self.val_source), batch_size=batch_size, rank=rank, world_size=world_size
        )
        return self._loader("val", self._batched[1], sampler, None if self._task.answers else identified)

    def check(self, world_size: int) -> None:
        """Refuse data and sizes of batches that nothing can be learned from in so many processes.

        Raises:
            ConfigError: a size is too small.
            DataError: there are too few samples.
        """
        self._task.check_batches(len(self.train_source), len(self.val_source), world_size)
        self._train_sampler(0, world_size)

    @property
    def _batched(self) -> Sequence[Source]:
        return self.kept_sources or (self.train_source, self.val_source)

    def _train_sampler(self, rank: int, world_size: int) -> BatchSampler:
        return BatchSampler(
            num_samples=len(self.train_source),
            batch_size=self._config.batch_size,
            seed=self._seed,
            rank=rank,
            world_size=world_size,
            least=self._task.least_samples(world_size),
            blocks=self.train_source.blocks(),
            groups=self._groups,
            lengths=self._lengths,
        )

    def _loader(
        self,
        split: str,
        source: Source,
        sampler: BatchSampler | BlockSampler,
        view: View | None,
        least: int = 1,
    ) -> BatchLoader[Any]:
        bad_samples = BadSampleList(self._bad_samples, split, len(source), self._config.max_bad_fraction)
        return BatchLoader(BatchDataset(source, self._collate, view, least), sampler, bad_samples, self._config)


def _say_if_too_many_workers(config: DatasetConfig) -> None:
    """A notice for all loaders of a run, in place of torch's warning in each loader and process."""
    num_cpus = num_cores()
    num_processes = this_process().local_world_size
    if config.num_workers * num_processes > num_cpus:
        each = f" in each of {num_processes} processes" if num_processes > 1 else ""
        logger.info(f"dataset.num_workers: {config.num_workers}{each} for {num_cpus} CPUs; fewer may be faster")


@dataclass
class Parts:
    """The model that is trained, and all that feeds it."""

    task: Task
    preprocessing: Preprocessing
    data: TrainingData
    model: TrainableModel

    @property
    def num_parameters(self) -> int:
        """Parameters of the model, frozen ones included."""
        return num_weights(self.model)

    def built_again(self, seed: int) -> TrainableModel:
        """A second model like the first one at its start."""
        return _built(self.task, self.preprocessing, seed)

    def parameters(self) -> Iterator[tuple[str, int]]:
        """Name and number of parameters of each part of the model."""
        for name, part in self.model.named_children():
            yield name, num_weights(part)


def build_parts(config: ExperimentConfig, run_dir: Path | None, *, resumed: bool = False, world_size: int = 1) -> Parts:
    """Open the data, prepare the tokenizer (or take that of a resumed run), draw or load the weights.

    Without `run_dir` nothing is written. `world_size` processes will share the data.
    """
    task, sources = task_of(config), open_train_and_val(config.dataset, reading_of(config))
    preprocessing = Preprocessing.load(run_dir) if resumed and run_dir is not None else task.prepare(sources[0])
    bad_samples = run_dir / BAD_SAMPLES if run_dir is not None else None
    data = TrainingData(config, preprocessing, bad_samples, sources)
    data.check(world_size)
    return Parts(task, preprocessing, data, _built(task, preprocessing, config.seed))


def _built(task: Task, preprocessing: Preprocessing, seed: int) -> TrainableModel:
    torch.manual_seed(seed)
    return task.build(preprocessing)
