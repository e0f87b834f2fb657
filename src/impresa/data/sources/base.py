"""The interface of all sources of samples, the parts that they read, and the error for a sample without use."""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Protocol

from impresa.config.encoder import Modality
from impresa.config.experiment import ExperimentConfig
from impresa.data.dialogue import Dialogue
from impresa.data.sample import Sample
from impresa.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

logger = logging.getLogger(__name__)


@cache
def say_once(level: int, line: str) -> None:
    """Log a line, once in a process: training opens its data again for the evaluation."""
    logger.log(level, line)


class BadSample(DataError):  # noqa: N818 - a state of the data, with which training continues
    """A sample that cannot be used: training skips and lists it; read by itself, it raises the error."""

    def __init__(self, id: str, reason: str) -> None:
        reason = " ".join(reason.splitlines())  # some libraries explain themselves at length
        super().__init__(f"{id}: {reason}")
        self.id = id
        self.reason = reason

    def __reduce__(self) -> tuple[type[BadSample], tuple[str, str]]:
        # Pickle's default calls the constructor with the message alone, which fails between processes.
        return BadSample, (self.id, self.reason)


@dataclass(frozen=True)
class Reading:
    """The parts of the data that are read beside images and captions."""

    audio_seconds: float | None = None
    """Read sounds, each up to so many seconds: then a sample needs only two of image, caption and sound. None reads no
    sound, and every sample needs an image and a caption."""
    dialogues: bool = False
    """Read questions and answers: then a sample needs them, and no caption."""
    labels: bool = False
    """Read data that have no captions at all by their labels, which is enough to evaluate on them: then a sample needs
    an image and a label."""
    negatives: bool = False
    """Read hard negatives beside the captions, as training does."""
    parts: tuple[Modality, ...] = ()
    """Read data in order to embed these parts of them: a sample needs one of them, and files of other parts are not
    opened. Empty for what is said above."""
    others: bool = False
    """Keep the cells of all other columns in the rows as well, for those who store them beside what is read."""
    max_images: int = 1
    """Images of a sample at most; rows with more are not read."""
    tiles: int = 1
    """Squares in a row that an image may be cut into, which it is decoded large enough for."""
    whole: bool = False
    """Keep the cells of columns of any kind, for those who write the rows elsewhere as they are."""

    def wants(self, part: Modality) -> bool:
        """True for a part whose files are opened."""
        return not self.parts or part in self.parts

    @property
    def sounds(self) -> bool:
        return self.audio_seconds is not None


IMAGES_AND_CAPTIONS = Reading()
_MOST_IMAGES = 64
WHOLE_ROWS = Reading(
    600.0, dialogues=True, parts=("image", "text", "audio"), others=True, max_images=_MOST_IMAGES, whole=True
)
"""Rows as they are: all that any experiment could read, and the rest. A sound is not decoded."""


def reading_of(config: ExperimentConfig, *, labels: bool = False) -> Reading:
    """The parts that an experiment needs: sounds with an audio encoder, questions and answers with a decoder.

    Evaluation reads `labels` too, see `Reading`; hard negatives are read from training data alone.
    """
    seconds = None if config.audio_encoder is None else config.audio_encoder.audio_max_seconds
    negatives = config.dataset.negative_column is not None
    if config.decoder is None:
        return Reading(seconds, labels=labels, negatives=negatives)
    most, tiles = config.dataset.max_images, config.decoder.tiles
    return Reading(seconds, dialogues=True, labels=labels, max_images=most, tiles=tiles)


@dataclass(frozen=True)
class Blocks:
    """Consecutive samples that are cheap only if they are read together, such as the row groups of parquet."""

    lengths: tuple[int, ...]
    """Number of samples in each block, in the source's order."""
    num_held: int
    """Blocks that the source keeps in memory at once; shuffling stays within so many of them."""
    files: tuple[int, ...] = ()
    """Number of each block's file, where files are fetched and not all of them can be kept; else empty."""
    files_held: int = 0
    """Files that are kept at once; the order of blocks stays within so many of them."""


def locate(index: int, ends: Sequence[int]) -> tuple[int, int]:
    """The part that holds row `index`, and the row's number in it; `ends` has the number of rows up to each part's end.

    Raises:
        IndexError: there is no such row.
    """
    if not 0 <= index < ends[-1]:
        raise IndexError(f"row {index} of {ends[-1]}")
    part = bisect_right(ends, index)
    return part, index - (ends[part - 1] if part else 0)


@dataclass(frozen=True)
class FoundImage:
    """An image that has not been decoded yet."""

    digest: bytes
    """16 bytes, which are others for other pixels."""
    decoded: Callable[[], Image]
    """The image, upright in RGB. Raises `ValueError` if it cannot be decoded; the message is the reason alone."""


class Source(Protocol):
    """A sequence of samples with random access. It can be sent to another process."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample:
        """The sample at `index`. Raises `BadSample` if its image, sound or text cannot be used."""

    def captions(self) -> Iterator[str]:
        """All captions that can be used, without decoding an image."""

    def dialogues(self) -> Iterator[Dialogue]:
        """All questions and answers, without decoding an image; none if they are not read."""

    def dialogues_by_sample(self) -> Iterator[tuple[Dialogue, ...]]:
        """Those of each sample, in order; empty for one that cannot be used, and nothing if they are not read."""

    def blocks(self) -> Blocks | None:
        """Storage of the samples; None if every order costs the same."""


class SourceOfImages(Source, Protocol):
    """A source whose images need not be decoded, as all of ours are."""

    def without_image(self, index: int) -> Sample:
        """The sample at `index` without its image, which is not decoded; the errors are the same."""

    def image_at(self, index: int) -> FoundImage | None:
        """The image of a sample; None if it has none, or cannot be used."""
