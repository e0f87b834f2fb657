"""Reading the samples of an evaluation, without the bad ones, and embedding them in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Generic, TypeVar

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from impresa.config.dataset import DatasetConfig
from impresa.data.sample import Sample
from impresa.data.sources import BadSample, Source, Split, split_read
from impresa.errors import DataError
from impresa.evaluation.results import BadSampleNote
from impresa.tasks.arguments import whole_number

Item = TypeVar("Item")


def progress_bar(show: bool) -> Progress:
    """A bar with the time left on standard error, or one that shows nothing."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), disable=not show)


def read_samples(source: Source, positions: Iterable[int], bad: list[BadSampleNote]) -> Iterator[tuple[int, Sample]]:
    """The good samples and their positions. The others are noted in `bad`."""
    for position in positions:
        try:
            yield position, source[position]
        except BadSample as fault:
            bad.append(BadSampleNote(fault.id, fault.reason))


def nothing_usable(data: str, bad: Sequence[BadSampleNote], command: str) -> DataError:
    """The error that no sample can be used: up to three different reasons, each with the first sample that has it."""
    first_of = {note.reason: note.id for note in reversed(bad)}
    reasons = [f"{first_of[reason]}: {reason}" for reason in dict.fromkeys(note.reason for note in bad)]
    return DataError(f"{data}: no usable sample ({'; '.join(reasons[:3]) or 'it is empty'}); `{command}` lists them")


def name_of_data(config: DatasetConfig, split: Split) -> str:
    """The name of a split of the configured data in results."""
    split = split_read(config, split)
    path = {"train": config.train_path, "val": config.val_path, "test": config.test_path}[split]
    return f"{path or config.train_path}, {split} split"


def evaluation_batch_size(asked: int | None, config: DatasetConfig) -> int:
    """Samples at a time: as asked for, else as in the config."""
    return (config.eval_batch_size or config.batch_size) if asked is None else whole_number("batch_size", asked)


class Embedder(Generic[Item]):
    """Embeds items as they come, so that only a few of them are held.

    Args:
        encode: turns N items into embeddings (N, E).
        batch_size: N at most.
    """

    def __init__(self, encode: Callable[[list[Item]], Tensor], batch_size: int) -> None:
        self._encode, self._batch_size = encode, batch_size
        self._waiting: list[Item] = []
        self._embedded: list[Tensor] = []

    def add(self, item: Item) -> None:
        self._waiting.append(item)
        if len(self._waiting) == self._batch_size:
            self._embed_waiting()

    def embeddings(self) -> Tensor:
        """(I, E) of all items so far, (0, 0) of none."""
        self._embed_waiting()
        return torch.cat(self._embedded) if self._embedded else torch.zeros(0, 0)

    def _embed_waiting(self) -> None:
        if self._waiting:
            self._embedded.append(self._encode(self._waiting))
            self._waiting = []
