"""The points of a map: images, texts and sounds of the data, embedded, and what belongs together."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from impresa.config.losses import FUSED_PAIR
from impresa.data.audio import Clip
from impresa.data.sample import Sample
from impresa.data.sources import Source
from impresa.evaluation.results import BadSampleNote
from impresa.evaluation.retrieval import unit_rows
from impresa.reports.pictures import thumbnail
from impresa.tasks.alignment.sound import SOUNDS_AT_A_TIME
from impresa.tasks.gallery import spread
from impresa.tasks.samples import Embedder, nothing_usable, progress_bar, read_samples

if TYPE_CHECKING:
    from impresa.tasks.alignment.embedder import EmbeddingModel

IMAGE, TEXT, AUDIO, PAIR = MODALITIES = ("image", "text", "audio", "image+audio")
_PLURALS = {IMAGE: "images", TEXT: "texts", AUDIO: "sounds", PAIR: "pairs of image and sound"}
TEXTS_PER_SAMPLE = 5
"""Different texts are points up to this many times the limit of samples."""


@dataclass
class Point:
    """An image, a text, a sound, or a pair of image and sound, that a split holds once or several times."""

    modality: str
    split: str
    id: str
    """Name of the first sample that has it."""
    captions: dict[str, None] = field(default_factory=dict)
    """All different captions of its samples, in order; of a text itself alone."""
    labels: dict[str, None] = field(default_factory=dict)
    """All different class names of its samples, in order."""
    thumbnail: bytes | None = None
    """A file of the picture made small, PNG or JPEG."""
    partners: dict[int, None] = field(default_factory=dict)
    """Indices of the texts of an image or a sound; of the images and sounds of a text."""

    @property
    def label(self) -> str | None:
        """The class name, where all its samples have the same."""
        return next(iter(self.labels)) if len(self.labels) == 1 else None


@dataclass
class Points:
    """N points and all that the data had beside them."""

    items: list[Point]
    vectors: Tensor
    """(N, E) float64, rows of length one."""
    num_samples: int
    """Samples that were read, bad ones included."""
    num_left_out: int
    """Samples beyond the limit."""
    num_texts_left_out: int
    bad: list[BadSampleNote]

    def rows_of(self, modality: str) -> list[int]:
        """Indices of the points of a modality."""
        return [row for row, point in enumerate(self.items) if point.modality == modality]

    def summary(self) -> str:
        """Their number in all and of each modality, in words."""
        counts = {_PLURALS[kind]: len(rows) for kind in MODALITIES if (rows := self.rows_of(kind))}
        return f"{len(self.items):,} points: {', '.join(f'{count:,} {name}' for name, count in counts.items())}"


def collect_points(
    model: EmbeddingModel,
    sources: Mapping[str, Source],
    *,
    data: str,
    limit: int,
    batch_size: int,
    show_progress: bool = False,
) -> Points:
    """Embed what the model takes of each split: different images, different captions, different sounds.

    Equal images of a split are one point with all their captions, and so are equal sounds; a text is one point however
    often it is there. Bad samples are skipped and listed.

    Args:
        model: embeds them.
        sources: the splits by name.
        data: their name in an error.
        limit: samples that are read, shared evenly among the splits and taken at even distances.
        batch_size: inputs at a time.
        show_progress: bars on standard error.

    Raises:
        DataError: no sample is usable, or an embedding is NaN or infinite.
    """
    shares = _shares([len(source) for source in sources.values()], limit)
    num_chosen = sum(shares)
    collector, bad = _Collector(model, batch_size), list[BadSampleNote]()
    with progress_bar(show_progress) as bar:
        task = bar.add_task("embedding", total=num_chosen)
        for (split, source), share in zip(sources.items(), shares, strict=True):
            chosen = _advancing(spread(range(len(source)), share), lambda: bar.advance(task))
            for _, sample in read_samples(source, chosen, bad):
                if not collector.add(split, sample):
                    bad.append(BadSampleNote(sample.id, "no image"))
    if not collector.items:
        raise nothing_usable(data, bad, "impresa data check PATH")
    num_texts_left_out = collector.add_texts(TEXTS_PER_SAMPLE * limit, show_progress)
    return Points(
        collector.items,
        collector.vectors(),
        num_samples=num_chosen,
        num_left_out=sum(map(len, sources.values())) - num_chosen,
        num_texts_left_out=num_texts_left_out,
        bad=bad,
    )


class _Collector:
    """Points as they come, each embedded once."""

    def __init__(self, model: EmbeddingModel, batch_size: int) -> None:
        def encode_pairs(pairs: list[tuple[Tensor, Clip]]) -> Tensor:
            pixels, clips = zip(*pairs, strict=True)
            return model.encode_image_audio(pixels, clips, batch_size=batch_size)

        self.items: list[Point] = []
        self._model, self._batch_size = model, batch_size
        self._embedders: dict[str, Embedder[Any]] = {
            IMAGE: Embedder(partial(model.encode_image, batch_size=batch_size), batch_size)
        }
        if model.config.audio_encoder is not None:
            self._embedders[AUDIO] = Embedder(partial(model.encode_audio, batch_size=batch_size), SOUNDS_AT_A_TIME)
        if FUSED_PAIR in (model.config.losses.pairs or ()):
            self._embedders[PAIR] = Embedder(encode_pairs, SOUNDS_AT_A_TIME)
        self._row: dict[Hashable, int] = {}
        self._texts: dict[tuple[str, str], list[int]] = {}
        self._text_vectors = torch.zeros(0, 0)

    def add(self, split: str, sample: Sample) -> bool:
        """Add all parts of a sample that the model takes; false if there is none."""
        image, clip, prepare = sample.image, sample.audio, self._model.preprocessing.image
        rows = []
        if image is not None:
            rows.append(self._add(split, IMAGE, sample.image_key, sample, lambda: prepare(image)))
        if clip is not None and AUDIO in self._embedders:
            rows.append(self._add(split, AUDIO, sample.audio_key, sample, lambda: clip))
        if image is not None and clip is not None and PAIR in self._embedders:
            both = sample.image_key, sample.audio_key
            rows.append(self._add(split, PAIR, both, sample, lambda: (prepare(image), clip)))
        for caption in sample.captions if rows else ():
            self._texts.setdefault((split, caption), []).extend(rows)
        return bool(rows)

    def _add(self, split: str, modality: str, key: Hashable, sample: Sample, prepared: Callable[[], Any]) -> int:
        """The row of an item, which is a new one if its split does not hold it yet."""
        row = self._row.setdefault((split, modality, key), len(self.items))
        if row == len(self.items):
            small = thumbnail(sample.image)[1] if sample.image is not None and modality != AUDIO else None
            self.items.append(Point(modality, split, sample.id, thumbnail=small))
            self._embedders[modality].add(prepared())
        self.items[row].captions |= dict.fromkeys(sample.captions)
        if sample.label is not None:
            self.items[row].labels[sample.label] = None
        return row

    def add_texts(self, most: int, show_progress: bool) -> int:
        """Add the different captions, `most` of them at even distances; returns how many were left out."""
        chosen = spread(list(self._texts), most)
        for split, caption in chosen:
            rows = self._texts[split, caption]
            labels = dict.fromkeys(chain.from_iterable(self.items[row].labels for row in rows))
            text = Point(TEXT, split, self.items[rows[0]].id, {caption: None}, labels, None, dict.fromkeys(rows))
            for row in text.partners:
                self.items[row].partners[len(self.items)] = None
            self.items.append(text)
        if chosen:
            captions = [caption for _, caption in chosen]
            self._text_vectors = self._model.encode_text(
                captions, batch_size=self._batch_size, show_progress=show_progress
            )
        return len(self._texts) - len(chosen)

    def vectors(self) -> Tensor:
        """(N, E) float64 rows of length one, in the order of `items`."""
        embedded = {modality: embedder.embeddings() for modality, embedder in self._embedders.items()}
        embedded[TEXT] = self._text_vectors
        units = {modality: iter(unit_rows(rows, modality)) for modality, rows in embedded.items() if len(rows)}
        return torch.stack([next(units[point.modality]) for point in self.items])


def _advancing(positions: Iterable[int], advance: Callable[[], None]) -> Iterable[int]:
    for position in positions:
        yield position
        advance()


def _shares(sizes: Sequence[int], limit: int) -> list[int]:
    """How many of each part are taken, at most `limit` in all; what a small part leaves goes to the larger ones."""
    shares, left = [0] * len(sizes), limit
    for num_done, index in enumerate(sorted(range(len(sizes)), key=lambda index: sizes[index])):
        shares[index] = min(sizes[index], left // (len(sizes) - num_done))
        left -= shares[index]
    return shares
