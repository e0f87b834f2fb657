"""Summary of a source: its usable and bad samples, sizes, captions and labels. Each sample is read once."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from impresa.data.bad_rows import without_details
from impresa.data.images import ImageTransform, mean_share_cut
from impresa.data.sources import BadSample, Source


@dataclass(frozen=True)
class Spread:
    """Smallest, median and largest of some numbers."""

    smallest: int
    median: float
    largest: int

    @classmethod
    def of(cls, values: Sequence[int]) -> Spread | None:
        return cls(min(values), median(values), max(values)) if values else None


@dataclass(frozen=True)
class BadRow:
    """A sample that cannot be used."""

    id: str
    reason: str


@dataclass(frozen=True)
class SourceSummary:
    """Result of `inspect_source`. All but the first five fields describe the good samples alone."""

    num_samples: int
    """All samples, good and bad."""
    bad: tuple[BadRow, ...]
    reasons: dict[str, int]
    """Bad samples by reason, less what differs from sample to sample; the most frequent first."""
    left_out: dict[str, int]
    """Rows of each kind that `dataset.skip_unsupported_rows` leaves out; they are no samples."""
    same_id: dict[str, int]
    """Number of samples of each name that several samples have: they are of the same file."""
    width_px: Spread | None
    height_px: Spread | None
    share_cut: float | None
    """Mean part of the images' area that the centre square leaves out, 0 to 1."""
    caption_words: Spread | None
    num_sounds: int
    """Zero also if sound is not read."""
    sound_ms: Spread | None
    num_dialogues: int
    """Zero also if questions are not read."""
    kinds: dict[str, int]
    """Dialogues of each type of question, the most frequent first, without those that have no type."""
    answer_words: Spread | None
    num_dropped_turns: int
    """Answers before the first question and questions after the last answer, which are left out."""
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
        return len(self.bad) / self.num_samples if self.num_samples else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "num_good": self.num_good, "bad_fraction": self.bad_fraction}


def inspect_source(source: Source, track: Callable[[Iterable[int]], Iterable[int]] = iter) -> SourceSummary:
    """Read all samples of a source; `track` wraps the iteration over their indices, for a progress bar."""
    bad, images, sounds_ms = [], [], []
    caption_words, answer_words, captions = [], [], set[str]()
    kinds, labels = Counter[str](), Counter[str]()
    num_dialogues = num_dropped_turns = 0
    ids: list[str] = []
    ids_of_image: defaultdict[int, list[str]] = defaultdict(list)
    for index in track(range(len(source))):
        try:
            sample = source[index]
        except BadSample as fault:
            bad.append(BadRow(fault.id, fault.reason))
            ids.append(fault.id)
            continue
        ids.append(sample.id)
        if sample.image is not None and sample.image_key is not None:
            images.append(sample.image.size)
            ids_of_image[sample.image_key].append(sample.id)
        if sample.audio is not None:
            sounds_ms.append(1000 * len(sample.audio.samples) // sample.audio.rate_hz)
        num_dialogues += len(sample.dialogues)
        num_dropped_turns += sum(dialogue.num_dropped for dialogue in sample.dialogues)
        kinds.update(dialogue.kind for dialogue in sample.dialogues if dialogue.kind)
        answer_words += [len(turn.answer.split()) for dialogue in sample.dialogues for turn in dialogue.turns]
        caption_words += [len(caption.split()) for caption in sample.captions]
        captions.update(sample.captions)
        labels.update([] if sample.label is None else [sample.label])
    return SourceSummary(
        num_samples=len(source),
        bad=tuple(bad),
        reasons=dict(Counter(without_details(row.reason) for row in bad).most_common()),
        left_out=getattr(source, "left_out", {}),
        same_id=_names_of_several(ids),
        width_px=Spread.of([width for width, _ in images]),
        height_px=Spread.of([height for _, height in images]),
        share_cut=mean_share_cut(ImageTransform(1), images),
        caption_words=Spread.of(caption_words),
        num_sounds=len(sounds_ms),
        sound_ms=Spread.of(sounds_ms),
        num_dialogues=num_dialogues,
        kinds=dict(kinds.most_common()),
        answer_words=Spread.of(answer_words),
        num_dropped_turns=num_dropped_turns,
        num_captions=len(caption_words),
        num_distinct_captions=len(captions),
        labels=dict(labels.most_common()),
        same_image=tuple(tuple(ids) for ids in ids_of_image.values() if len(ids) > 1),
    )


def _names_of_several(ids: Sequence[str]) -> dict[str, int]:
    """How many samples have a name, without the number that sources give to the second and later ones."""
    numbered = (re.fullmatch(r"(.*)#\d+", id, re.DOTALL) for id in ids)
    known = set(ids)
    repeated = Counter(match[1] for match in numbered if match and match[1] in known)
    return {name: number + 1 for name, number in repeated.most_common()}
