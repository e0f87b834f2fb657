"""Summary of a source: its usable and bad samples, sizes, captions and labels. Each sample is read once."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from math import ceil
from statistics import median
from typing import Any

from impresa.data.bad_rows import without_details
from impresa.data.images import ImageTransform
from impresa.data.near_duplicates.fingerprints import Fingerprints
from impresa.data.near_duplicates.groups import Duplicates, find_duplicates
from impresa.data.near_duplicates.record import summary as duplicates_summary
from impresa.data.sources import BadSample, Source
from impresa.data.tiles import mean_share_cut

_MOST_BINS = 20
_MOST_EXAMPLES = 10
_SPLITS = {
    "train": "train",
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    "test": "test",
}
"""Names of folders, and the splits that they mean."""


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
class Histogram:
    """Numbers of values in bins of equal width; bin k begins at `start + k * width`."""

    start: int
    width: int
    counts: tuple[int, ...]

    @classmethod
    def of(cls, values: Sequence[int]) -> Histogram | None:
        if not values:
            return None
        start = min(values)
        width = max(ceil((max(values) - start + 1) / _MOST_BINS), 1)
        found = Counter((value - start) // width for value in values)
        return cls(start, width, tuple(found[k] for k in range(max(found) + 1)))


@dataclass(frozen=True)
class Overlap:
    """Images of one split that another one has too, or nearly."""

    splits: tuple[str, str]
    num_equal: int
    """Images of the second split whose pixels are those of an image of the first."""
    num_near: int
    """Further ones that are nearly equal to one."""
    examples: tuple[tuple[str, str], ...]
    """Names of up to ten such pairs."""


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
    near_images: tuple[tuple[str, ...], ...]
    """Names of samples whose images are equal or nearly so, of groups that hold more than equal ones."""
    duplicates: dict[str, Any]
    """Numbers of pairs, and a histogram of how far images differ whose hashes are near."""
    splits: dict[str, int]
    """Samples of each split, if the data are divided into folders `train`, `val` and `test`, or were given so."""
    overlaps: tuple[Overlap, ...]
    """For each two splits that share images."""
    widths_px: Histogram | None
    heights_px: Histogram | None
    captions_words: Histogram | None

    @property
    def num_good(self) -> int:
        return self.num_samples - len(self.bad)

    @property
    def bad_fraction(self) -> float:
        return len(self.bad) / self.num_samples if self.num_samples else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "num_good": self.num_good, "bad_fraction": self.bad_fraction}


@dataclass(frozen=True)
class Look:
    """A summary, and what it takes to show the images of pairs."""

    summary: SourceSummary
    found: Duplicates
    names: list[str]
    """Of the samples with an image."""
    indices: list[int]
    """Their places in the source."""


def inspect_source(source: Source, track: Callable[[Iterable[int]], Iterable[int]] = iter) -> SourceSummary:
    """Read all samples of a source; `track` wraps the iteration over their indices, for a progress bar."""
    return look_at(source, track).summary


def look_at(source: Source, track: Callable[[Iterable[int]], Iterable[int]] = iter) -> Look:
    """The same, and the images that are equal or nearly so."""
    bad, images, sounds_ms = [], [], []
    caption_words, answer_words, captions = [], [], set[str]()
    kinds, labels = Counter[str](), Counter[str]()
    num_dialogues = num_dropped_turns = 0
    ids: list[str] = []
    prints, names, indices = Fingerprints(), list[str](), list[int]()
    for index in track(range(len(source))):
        try:
            sample = source[index]
        except BadSample as fault:
            bad.append(BadRow(fault.id, fault.reason))
            ids.append(fault.id)
            continue
        ids.append(sample.id)
        for image in sample.images:
            images.append(image.size)
            prints.add(image)
            names.append(sample.id)
            indices.append(index)
        if sample.audio is not None:
            sounds_ms.append(1000 * len(sample.audio.samples) // sample.audio.rate_hz)
        num_dialogues += len(sample.dialogues)
        num_dropped_turns += sum(dialogue.num_dropped for dialogue in sample.dialogues)
        kinds.update(dialogue.kind for dialogue in sample.dialogues if dialogue.kind)
        answer_words += [len(turn.answer.split()) for dialogue in sample.dialogues for turn in dialogue.turns]
        caption_words += [len(caption.split()) for caption in sample.captions]
        captions.update(sample.captions)
        labels.update([] if sample.label is None else [sample.label])
    found = find_duplicates(prints)
    same = [tuple(names[k] for k in group) for group in found.equal_members()]
    near = [tuple(names[k] for k in group) for group in found.members() if len(set(found.equal[list(group)])) > 1]
    summary = SourceSummary(
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
        same_image=tuple(same),
        near_images=tuple(near),
        duplicates=duplicates_summary(found),
        splits=dict(Counter(split for split in map(split_of, ids) if split)),
        overlaps=tuple(_overlaps(found, names)),
        widths_px=Histogram.of([width for width, _ in images]),
        heights_px=Histogram.of([height for _, height in images]),
        captions_words=Histogram.of(caption_words),
    )
    return Look(summary, found, names, indices)


def split_of(id: str) -> str | None:
    """The split that the name of a sample begins with, as a folder."""
    return _SPLITS.get(id.partition("/")[0])


def _overlaps(found: Duplicates, names: Sequence[str]) -> Iterator[Overlap]:
    splits = [split_of(name) for name in names]
    for one, other in combinations(dict.fromkeys(_SPLITS.values()), 2):
        of_one: dict[int, int] = {}
        equal_in_one = set[int]()
        for k in (k for k, split in enumerate(splits) if split == one):
            of_one.setdefault(int(found.groups[k]), k)
            equal_in_one.add(int(found.equal[k]))
        shared = [k for k, split in enumerate(splits) if split == other and int(found.groups[k]) in of_one]
        if shared:
            num_equal = sum(int(found.equal[k]) in equal_in_one for k in shared)
            pairs = tuple((names[of_one[int(found.groups[k])]], names[k]) for k in shared[:_MOST_EXAMPLES])
            yield Overlap((one, other), num_equal, len(shared) - num_equal, pairs)


def _names_of_several(ids: Sequence[str]) -> dict[str, int]:
    """How many samples have a name, without the number that sources give to the second and later ones."""
    numbered = (re.fullmatch(r"(.*)#\d+", id, re.DOTALL) for id in ids)
    known = set(ids)
    repeated = Counter(match[1] for match in numbered if match and match[1] in known)
    return {name: number + 1 for name, number in repeated.most_common()}
