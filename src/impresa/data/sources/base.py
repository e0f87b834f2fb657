"""What every source of samples offers, and how one says that a sample is unusable."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from impresa.data.dialogue import Dialogue
from impresa.data.sample import Sample
from impresa.errors import DataError


class BadSample(DataError):  # noqa: N818 - a state of the data that training goes on with
    """One sample that cannot be used: training skips and lists it, a reader of single samples sees the error."""

    def __init__(self, id: str, reason: str) -> None:
        super().__init__(f"{id}: {reason}")
        self.id = id
        self.reason = reason

    def __reduce__(self) -> tuple[type[BadSample], tuple[str, str]]:
        # The default would call the constructor with the message alone, and fail to cross a process boundary.
        return BadSample, (self.id, self.reason)


@dataclass(frozen=True)
class Blocks:
    """Runs of consecutive samples that are cheap only when they are read together, like the row groups of parquet."""

    lengths: tuple[int, ...]
    """Number of samples in each run, in the source's order."""
    num_held: int
    """Runs that the source keeps in memory at once; shuffling stays within so many of them."""


class Source(Protocol):
    """A sequence of samples with random access. It can be sent to another process."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample:
        """The sample at `index`.

        Raises:
            BadSample: its image, sound or text cannot be used.
        """
        ...

    def captions(self) -> Iterator[str]:
        """All captions, without decoding an image; unusable ones are left out."""
        ...

    def dialogues(self) -> Iterator[Dialogue]:
        """All questions and answers, without decoding an image; none where they were not asked for."""
        ...

    def blocks(self) -> Blocks | None:
        """How samples lie together in storage; None where every order costs the same."""
        ...


class DivisibleSource(Source, Protocol):
    """A source that can be divided by image."""

    def image_keys(self) -> Iterator[str]:
        """For each sample, in order, a name of its image, or of its sound where there is no image.

        Names of equal images are equal, and they are the same in every run.
        """
        ...

    def captions_by_sample(self) -> Iterator[tuple[str, ...]]:
        """For each sample, in order, its captions, without decoding an image; none where they are unusable."""
        ...

    def dialogues_by_sample(self) -> Iterator[tuple[Dialogue, ...]]:
        """The same for questions and answers."""
        ...
