"""What is in a source: every sample is read once; how many are usable, how large, how described, and what is bad."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from statistics import median
from typing import Any

from PIL import Image

from impresa.data.sample import Sample
from impresa.data.sources import BadSample, Source


@dataclass(frozen=True)
class Spread:
    """Smallest, median and largest of some numbers."""

    smallest: int
    median: float
    largest: int

    @classmethod
    def of(cls, values: Sequence[int]) -> Spread | None:
        """None for no values."""
        return cls(min(values), median(values), max(values)) if values else None


@dataclass(frozen=True)
class BadRow:
    """A sample that cannot be used."""

    id: str
    reason: str


@dataclass(frozen=True)
class SourceSummary:
    """What `inspect_source` found."""

    num_samples: int
    """All samples, good and bad."""
    bad: tuple[BadRow, ...]
    """Every sample that cannot be used."""
    width_px: Spread | None
    """Of the good images, as all that follows is of good samples."""
    height_px: Spread | None
    caption_words: Spread | None
    """Words of a caption."""
    num_sounds: int
    """Zero also where sound is not read."""
    sound_ms: Spread | None
    """Milliseconds of a sound."""
    num_dialogues: int
    """Zero also where questions are not read."""
    kinds: dict[str, int]
    """Dialogues of each type of question, the most frequent first; those without a type are not in it."""
    answer_words: Spread | None
    """Words of an answer."""
    num_captions: int
    num_distinct_captions: int
    labels: dict[str, int]
    """Samples of each class, the most frequent first."""
    same_image: tuple[tuple[str, ...], ...]
    """Names of samples whose images are equal, pixel by pixel."""

    @property
    def num_good(self) -> int:
        return self.num_samples - len(self.bad)

    @property
    def bad_fraction(self) -> float:
        """Part of the samples that is bad."""
        return len(self.bad) / self.num_samples if self.num_samples else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "num_good": self.num_good, "bad_fraction": self.bad_fraction}


def inspect_source(source: Source, track: Callable[[Iterable[int]], Iterable[int]] = iter) -> SourceSummary:
    """Read all samples of a source.

    Args:
        source: the samples.
        track: wraps the iteration over their numbers, for a progress bar.
    """
    bad: list[BadRow] = []
    widths, heights, words, lengths_ms = [], [], [], []
    captions: set[str] = set()
    kinds: Counter[str] = Counter()
    num_dialogues, answer_words = 0, []
    labels: Counter[str] = Counter()
    ids_of_image: defaultdict[bytes, list[str]] = defaultdict(list)
    for index in track(range(len(source))):
        try:
            sample: Sample = source[index]
        except BadSample as fault:
            bad.append(BadRow(fault.id, fault.reason))
            continue
        if sample.image is not None:
            widths.append(sample.image.width)
            heights.append(sample.image.height)
            ids_of_image[_fingerprint(sample.image)].append(sample.id)
        if sample.audio is not None:
            lengths_ms.append(1000 * len(sample.audio.samples) // sample.audio.rate_hz)
        num_dialogues += len(sample.dialogues)
        kinds.update(dialogue.kind for dialogue in sample.dialogues if dialogue.kind)
        answer_words += [len(turn.answer.split()) for dialogue in sample.dialogues for turn in dialogue.turns]
        words += [len(caption.split()) for caption in sample.captions]
        captions.update(sample.captions)
        if sample.label is not None:
            labels[sample.label] += 1
    return SourceSummary(
        num_samples=len(source),
        bad=tuple(bad),
        width_px=Spread.of(widths),
        height_px=Spread.of(heights),
        caption_words=Spread.of(words),
        num_sounds=len(lengths_ms),
        sound_ms=Spread.of(lengths_ms),
        num_dialogues=num_dialogues,
        kinds=dict(kinds.most_common()),
        answer_words=Spread.of(answer_words),
        num_captions=len(words),
        num_distinct_captions=len(captions),
        labels=dict(labels.most_common()),
        same_image=tuple(tuple(ids) for ids in ids_of_image.values() if len(ids) > 1),
    )


def _fingerprint(image: Image.Image) -> bytes:
    return blake2b(f"{image.size}".encode() + image.tobytes(), digest_size=16).digest()
