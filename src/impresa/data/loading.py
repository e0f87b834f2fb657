"""Batches from a source: reading and augmenting in workers, bad samples left out, the position in the data kept."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from multiprocessing.connection import wait
from typing import Any, TypeVar
from weakref import WeakSet

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from impresa.config.augmentation import Augmentation, AugmentationOptions
from impresa.config.dataset import AudioAugmentation, DatasetConfig
from impresa.data.augmentation import augment
from impresa.data.bad_samples import BadSampleList
from impresa.data.dialogue import with_one_answer
from impresa.data.images import ImageTransform
from impresa.data.sample import Sample, TensorBatch, text_key
from impresa.data.sampler import BatchSampler, BlockSampler, Item
from impresa.data.sound_augmentation import augment_sound
from impresa.data.sources.base import BadSample, Source
from impresa.errors import DataError

_MOST_REPLACEMENTS = 100
_TELLS_SENDERS = hasattr(signal, "sigwaitinfo")
_DYING_S = 10
"""In which a worker whose connection has ended will end itself."""
_GRACE_S = 300
"""Time that the main process has to end its step and save, once all processes of a job are told to end."""

B = TypeVar("B", bound=TensorBatch)
Collate = Callable[[Sequence[Sample]], B]
"""Makes a batch of samples; those that it cannot use are named in the batch's `bad`."""
View = Callable[[Sample, Item], Sample]
"""A sample as a batch sees it."""


def identified(sample: Sample, item: Item) -> Sample:
    """The sample as it is, with its keys and without negatives, of which only training draws one."""
    return replace(sample, keys=sample.keys_with(sample.captions), negatives=())


@dataclass(frozen=True)
class TrainingView:
    """The draws of each epoch: caption, views, dialogues, one of several right answers, negative. They depend on seed,
    epoch and sample alone."""

    seed: int
    augmentation: Augmentation
    image: ImageTransform
    """Says how images become squares."""
    caption_dropout: float = 0.0
    """Probability of dropping each word of a caption; one word always stays. Questions and answers lose none."""
    questions_per_image: int = 1
    """Dialogues drawn from each sample, all different; all of them where there are no more."""
    augmentation_options: AugmentationOptions = field(default_factory=AugmentationOptions)
    audio_augmentation: AudioAugmentation = "none"
    identifies: bool = False
    """Give each sample its keys."""

    def __call__(self, sample: Sample, item: Item) -> Sample:
        """The sample with one of its captions, image and sound augmented, and some of its dialogues, with one of the
        right answers to each question."""
        same_image = self.augmentation == "none" or sample.image is None
        same_sound = self.audio_augmentation == "none" or sample.audio is None
        if (
            same_image
            and same_sound
            and self.caption_dropout == 0
            and len(sample.captions) < 2
            and len(sample.dialogues) < 2
            and not sample.negatives
            and not any(turn.references for said in sample.dialogues for turn in said.turns)
        ):
            # Nothing to draw: making the generator would cost more than all else here.
            return identified(sample, item) if self.identifies else sample
        generator = np.random.default_rng((self.seed, *item))
        captions = sample.captions and (sample.captions[int(generator.integers(len(sample.captions)))],)
        keys = sample.keys_with(captions) if self.identifies else {}
        views = (self.augmentation, self.image, generator, self.augmentation_options)
        images = tuple(augment(image, *views) for image in sample.images)
        captions = tuple(self._drop_words(text, generator) for text in captions)
        order = generator.permutation(len(sample.dialogues))[: self.questions_per_image]
        dialogues = tuple(sample.dialogues[index] for index in order)
        audio = sample.audio and augment_sound(sample.audio, self.audio_augmentation, generator)
        dialogues = tuple(with_one_answer(said, generator) for said in dialogues)
        changed = replace(sample, audio=audio, captions=captions, dialogues=dialogues, keys=keys)
        changed = replace(changed, image=next(iter(images), None), more_images=images[1:])
        return self._with_one_negative(changed, generator) if sample.negatives else changed

    def _with_one_negative(self, sample: Sample, generator: np.random.Generator) -> Sample:
        """The sample with one of its negatives. It is drawn last: nothing else depends on whether there are any."""
        drawn = sample.negatives[int(generator.integers(len(sample.negatives)))]
        key = text_key(drawn) if self.identifies else None
        return replace(sample, negatives=(self._drop_words(drawn, generator),), negative_key=key)

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
        view: changes each sample, as training does; None reads samples as they are.
        least: good samples that a batch needs, if there are so many; with 0 a batch may be `emptied`.
    """

    def __init__(self, source: Source, collate: Collate[B], view: View | None = None, least: int = 1) -> None:
        self._source = source
        self._least = least
        self._collate: Collate[B] = collate
        self._view = view

    def __len__(self) -> int:
        return len(self._source)

    def __getitems__(self, items: list[Item]) -> B:
        """The batch of these items, its bad samples named in `bad`. The DataLoader calls this with a whole batch.

        A batch with fewer than `least` good samples takes the next good ones of the source, so that all ranks have a
        batch that they can train on. No items, or with `least` 0 no good ones, give an emptied batch.

        Raises:
            DataError: not enough of the next hundred samples, or of all, are good either.
        """
        bad: dict[tuple[str, str], None] = {}
        if items and self._least:
            return self._filled_up(items, bad, self._least)
        samples = self._good(items, bad)
        batch = self._collate(samples) if samples else None
        if batch is not None:
            bad |= dict.fromkeys(batch.bad)
        if batch is None or not len(batch):
            batch = self._filled_up(items or [(0, 0)], {}, 1).emptied()
        return replace(batch, bad=list(bad))

    def _filled_up(self, items: list[Item], bad: dict[tuple[str, str], None], least: int) -> B:
        """A batch of these items, and of others until `least` are good."""
        (epoch, last), taken = items[-1], {index for _, index in items}
        following = ((last + step) % len(self) for step in range(1, min(_MOST_REPLACEMENTS, len(self)) + 1))
        samples: list[Sample] = []
        for more in (items, *([(epoch, index)] for index in following if index not in taken)):
            samples += self._good(more, bad)
            if len(samples) < least:
                continue
            batch = self._collate(samples)
            bad |= dict.fromkeys(batch.bad)
            if len(batch) >= least:
                return replace(batch, bad=list(bad))
        num_bad, first = len({id for id, _ in bad}), ": ".join(next(iter(bad), ("none", "")))
        several = f"{num_bad} samples in a row cannot be used, the first is {first}"
        raise DataError(f"data: {f'a sample cannot be used, {first}' if num_bad == 1 else several}")

    def _good(self, items: list[Item], bad: dict[tuple[str, str], None]) -> list[Sample]:
        """The good samples among these items; the others are noted in `bad`."""
        samples: list[Sample] = []
        for item in items:
            try:
                sample = self._source[item[1]]
            except BadSample as fault:
                bad[fault.id, fault.reason] = None
            else:
                samples.append(self._view(sample, item) if self._view else sample)
        return samples


class _ErrorsAsValues(Dataset[B | DataError]):
    """Returns a `DataError` as a value: raised in a worker, it would arrive with torch's traceback as its message."""

    def __init__(self, dataset: BatchDataset[B]) -> None:
        self._dataset: BatchDataset[B] = dataset

    def __getitems__(self, items: list[Item]) -> B | DataError:
        try:
            return self._dataset.__getitems__(items)
        except DataError as fault:
            return fault


class _WorkerIterator(_MultiProcessingDataLoaderIter):
    """torch's, which does not see that a worker is dead where its connection ends a moment before the process does."""

    def _try_get_data(self, *timeout: float) -> Any:
        try:
            return super()._try_get_data(*timeout)
        except (ConnectionError, EOFError) as error:
            workers = [worker for worker in self._workers if worker is not None]
            wait([worker.sentinel for worker in workers], _DYING_S)
            dead = ", ".join(str(worker.pid) for worker in workers if not worker.is_alive())
            if not dead:
                raise
            raise RuntimeError(f"DataLoader worker (pid(s) {dead}) exited unexpectedly") from error


class WorkerLoader(DataLoader[B]):
    """A DataLoader whose workers leave their end to the main process, and without torch's warning of too many workers,
    which a training run says once, for all loaders."""

    def __init__(self, dataset: Any, **options: Any) -> None:
        super().__init__(dataset, worker_init_fn=leave_the_end_to_the_main_process, **options)

    def check_worker_number_rationality(self) -> None:
        return

    @cached_property
    def _begun(self) -> WeakSet[Any]:
        """The epochs that are not over, and the one that persistent workers wait in."""
        return WeakSet()

    def _get_iterator(self) -> Any:
        if not self.num_workers:
            return super()._get_iterator()
        with _not_told_to_end():
            iterator = _WorkerIterator(self)
        self._begun.add(iterator)
        return iterator

    def close(self) -> None:
        """End the workers, of epochs that were left in the middle too: whoever keeps an error, as a notebook does,
        would keep them with it."""
        for iterator in self._begun:
            with suppress(RuntimeError):  # a worker had died, which was told when its batch was asked for
                iterator._shutdown_workers()
        self._iterator = None


class BatchLoader(WorkerLoader[B]):
    """A DataLoader of whole batches that keeps the list of bad samples and the sampler's position up to date.

    Args:
        dataset: reads and collates a batch.
        sampler: its items.
        bad_samples: the list.
        settings: those of the workers and of pinned memory are read.
    """

    def __init__(
        self,
        dataset: BatchDataset[B],
        sampler: BatchSampler | BlockSampler,
        bad_samples: BadSampleList,
        settings: DatasetConfig,
    ) -> None:
        self._positions = sampler
        self._bad_samples = bad_samples
        super().__init__(
            _ErrorsAsValues(dataset),
            batch_sampler=sampler,
            collate_fn=as_it_is,
            num_workers=settings.num_workers,
            prefetch_factor=settings.prefetch_factor if settings.num_workers else None,
            persistent_workers=settings.persistent_workers and settings.num_workers > 0,
            pin_memory=settings.pin_memory and torch.cuda.is_available(),
        )

    def position(self) -> dict[str, Any]:
        """The position in the training data, counted in batches that were used, and the sizes that it depends on."""
        assert isinstance(self._positions, BatchSampler)
        return self._positions.state_dict()

    def __iter__(self) -> Iterator[B]:  # type: ignore[override]
        """The batches of an epoch.

        Raises:
            DataError: too many samples are bad.
        """
        self._positions.begin_epoch()
        for batch in super().__iter__():
            if isinstance(batch, DataError):
                try:
                    raise batch
                finally:
                    del batch  # or the error and this frame would hold each other, and the workers with them
            self._bad_samples.add(batch.bad)
            self._positions.advance()
            yield batch


def leave_the_end_to_the_main_process(worker: int) -> None:
    """Let this data worker outlive the SIGTERM that schedulers send to all processes of a job: a worker that dies would
    stop the main process in the middle of its step. One from the main process ends it at once, as ever, and so does the
    time. Systems that do not tell who has sent a signal (macOS) keep torch's own rule.

    Nor has this worker anything to say of a main process that left while it took a batch: that tells its end itself."""
    say = sys.excepthook  # which only threads of multiprocessing call here
    sys.excepthook = lambda kind, *error: None if issubclass(kind, EOFError | ConnectionError) else say(kind, *error)
    if _TELLS_SENDERS:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # where no fork has brought that along
        threading.Thread(target=_end_when_told, daemon=True).start()


@contextmanager
def _not_told_to_end() -> Iterator[None]:
    """Processes that are started here never see a SIGTERM unless they ask for it, in none of their threads: some
    libraries begin threads in every new process before its first own line. A server that forks them (forkserver) is
    not to be started so: it starts the program's other processes, too, which would outlive their `terminate`."""
    if not _TELLS_SENDERS or multiprocessing.get_start_method() == "forkserver":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_when_told() -> None:
    main = multiprocessing.parent_process()  # not the system's parent, which may be a server that forks
    told: signal.struct_siginfo | None = signal.sigwaitinfo({signal.SIGTERM})
    end = time.monotonic() + _GRACE_S
    # A process that was suspended until the end is told of a signal that was none, see `training.worker`.
    while told is not None and (main is None or told.si_pid != main.pid):
        told = signal.sigtimedwait({signal.SIGTERM}, max(end - time.monotonic(), 0))
    if told is not None:
        os._exit(0)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    os.kill(os.getpid(), signal.SIGTERM)


def as_it_is(batch: Any) -> Any:
    """The batch itself, which the dataset has collated already."""
    return batch
