"""Evaluation of an alignment: embed everything once, then retrieval, baselines, zero-shot and examples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING

import torch
from PIL.Image import Image
from rich.progress import Progress
from torch import Tensor

from impresa.config.losses import FUSED_PAIR
from impresa.data.audio import Clip
from impresa.data.class_names import configured_names
from impresa.data.sample import Sample
from impresa.data.sources import Source
from impresa.data.tiles import mean_share_cut
from impresa.errors import DataError
from impresa.evaluation.baselines import (
    Baseline,
    ColourHistogramModel,
    PixelRidgeModel,
    colour_histogram,
    fits_in_seconds,
    small_pixels,
)
from impresa.evaluation.intervals import digest, with_intervals
from impresa.evaluation.linear_probe import linear_probe
from impresa.evaluation.results import (
    HISTOGRAM,
    RIDGE,
    BadSampleNote,
    Evaluation,
    RetrievalMetrics,
    ZeroShotMetrics,
)
from impresa.evaluation.retrieval import CHANCE, RightAnswers, chance, metrics_of_texts
from impresa.evaluation.space import embedding_space
from impresa.evaluation.zero_shot import check_templates, class_embeddings, zero_shot_metrics
from impresa.tasks.alignment.sound import Directions, EncodeText, Rows
from impresa.tasks.gallery import retrieval_gallery, spread
from impresa.tasks.samples import Embedder, evaluation_batch_size, nothing_usable, progress_bar, read_samples

if TYPE_CHECKING:
    from impresa.tasks.alignment.embedder import EmbeddingModel

NUM_BASELINE_SAMPLES = 4096
FITTED: dict[str, tuple[Callable[[Image], Tensor], Callable[[Tensor, Sequence[Sequence[str]]], Baseline]]] = {
    HISTOGRAM: (colour_histogram, ColourHistogramModel),
    RIDGE: (small_pixels, PixelRidgeModel),
}
"""By name of a baseline: the features of an image, and the model that is fitted to them and to captions."""


@dataclass
class _Seen:
    """All that is kept of a source's different images once they are gone, row by row, and its bad samples."""

    positions: list[int] = field(default_factory=list)
    """Of the first sample with each image."""
    ids: list[str] = field(default_factory=list)
    """The same samples' names."""
    captions: list[list[str]] = field(default_factory=list)
    features: dict[str, list[Tensor]] = field(default_factory=lambda: {name: [] for name in FITTED})
    """By baseline."""
    sizes_px: list[tuple[int, int]] = field(default_factory=list)
    """Width and height of each image."""
    labels: dict[tuple[int, str], None] = field(default_factory=dict)
    """Different pairs of row and label, in order."""
    bad: list[BadSampleNote] = field(default_factory=list)
    _row: dict[int, int] = field(default_factory=dict)

    def add(self, position: int, sample: Sample) -> tuple[int | None, bool]:
        """Returns the row of the sample's image (None if it has none), and true if it is a new one."""
        if sample.image is None or sample.image_key is None:
            return None, False
        row = self._row.setdefault(sample.image_key, len(self._row))
        if is_new := row == len(self.positions):
            self.positions.append(position)
            self.ids.append(sample.id)
            self.captions.append([])
            self.sizes_px.append(sample.image.size)
            for name, (feature_of, _) in FITTED.items():
                self.features[name].append(feature_of(sample.image))
        self.captions[row] += sample.captions
        if sample.label is not None:
            self.labels[row, sample.label] = None
        return row, is_new

    def digest(self) -> str:
        """The same for the same images, captions and labels in the same order."""
        return digest((*zip(self.ids, map(tuple, self.captions), strict=True), *self.labels))

    @property
    def classes(self) -> set[str]:
        return {label for _, label in self.labels}


def evaluate(
    model: EmbeddingModel,
    source: Source,
    *,
    data: str,
    train_source: Source | None = None,
    probe_source: Source | None = None,
    batch_size: int | None = None,
    show_progress: bool = False,
) -> Evaluation:
    """Retrieval in both directions, baselines beside it, and zero-shot classification where there are labels.

    A model with an audio encoder is judged on the sounds of the data too. Every caption of every image takes part;
    samples with equal images are one image with all their captions, wherever it is counted. Bad samples are skipped and
    listed. Colour histogram and ridge baseline are fitted on up to 4096 samples of `train_source`, and its class names,
    and `dataset.class_names`, join those to choose from. Arguments are those of `Task.evaluate`.

    Raises:
        DataError: no sample is usable, none has a caption or a label, or an embedding is NaN or infinite.
        ConfigError: a prompt template has no `{}`.
    """
    config = model.config.dataset
    batch_size = evaluation_batch_size(batch_size, config)
    encode_text = partial(model.encode_text, batch_size=batch_size, show_progress=show_progress)
    check_templates(config.prompt_templates)
    named = set(configured_names(config).values())

    inputs = _Inputs(model, batch_size)
    with progress_bar(show_progress) as bar:
        test = _read(source, bar.track(range(len(source)), description="embedding images"), inputs)
        train, num_train = _Seen(), None
        if train_source is not None:  # at even distances, so that sorted data are seen whole
            chosen = spread(range(len(train_source)), NUM_BASELINE_SAMPLES)
            train = _read(train_source, bar.track(chosen, description="fitting the baselines"))
            num_train = len(train.positions) if len(chosen) == len(train_source) else len(train_source)
        probed = None if probe_source is None else _labelled(model, probe_source, batch_size, bar)
    sounds, embeddings = inputs.sounds, inputs.images.embeddings()
    if not test.positions and not (sounds and sounds.num_samples):
        raise nothing_usable(data, test.bad, "impresa data check PATH")

    dims = vision.mrl_dimensions if (vision := model.config.vision_encoder).use_mrl else ()
    evaluation = Evaluation(
        data=data,
        num_images=len(test.positions),
        num_texts=sum(map(len, test.captions)),
        num_distinct_texts=len(set(chain(*test.captions))),
        bad_samples=tuple(test.bad),
        num_sounds=sounds.num_samples if sounds else 0,
        num_train=num_train,
        image_side_px=sorted(map(min, test.sizes_px))[len(test.sizes_px) // 2] if test.sizes_px else None,
        share_cut=mean_share_cut(model.preprocessing.image, test.sizes_px),
        sound=inputs.retrieval_of_sounds(embeddings, encode_text, dims),
        zero_shot=_zero_shot(embeddings, test, named | train.classes, encode_text, config.prompt_templates),
        linear_probe=probed and linear_probe(*probed, embeddings, list(test.labels), data=data),
        items=test.digest(),
    )
    spaces = {"image": embeddings, **({"audio": sounds.embeddings()} if sounds else {})}
    if evaluation.num_texts:
        right = _right_answers(test)
        texts = encode_text(list(right.texts))
        evaluation = replace(
            evaluation,
            retrieval=metrics_of_texts(embeddings, texts, right),
            by_dimension={dim: metrics_of_texts(embeddings[:, :dim], texts[:, :dim], right) for dim in dims},
            baselines=_baselines(right, test, train),
            space=embedding_space({**spaces, "text": texts}, right),
            gallery=retrieval_gallery(
                source, test.positions, embeddings, texts, right, transform=model.preprocessing.image
            ),
        )
    elif evaluation.zero_shot is None and not evaluation.sound:
        raise DataError(f"{data}: no captions, and fewer than two class names; there is nothing to evaluate")
    else:
        evaluation = replace(evaluation, space=embedding_space(spaces))
    return with_intervals(evaluation)


class _Inputs:
    """The inputs of an evaluation, embedded as they come: images, and as far as the model takes them sounds and both.

    Images are preprocessed one by one: a batch of photographs would not fit into memory, a batch of small squares does.
    """

    def __init__(self, model: EmbeddingModel, batch_size: int, *, images_only: bool = False) -> None:
        def encode_pairs(pairs: list[tuple[Tensor, Clip]]) -> Tensor:
            pixels, clips = zip(*pairs, strict=True)
            return model.encode_image_audio(pixels, clips, batch_size=batch_size)

        self._preprocess = model.preprocessing.image
        self.images = Embedder(partial(model.encode_image, batch_size=batch_size), batch_size)
        self.sounds: Rows[Clip] | None = None
        self.fused: Rows[tuple[Tensor, Clip]] | None = None
        if images_only:
            return
        if model.config.audio_encoder is not None:
            self.sounds = Rows("audio", partial(model.encode_audio, batch_size=batch_size))
        if FUSED_PAIR in (model.config.losses.pairs or ()):
            self.fused = Rows("image+audio", encode_pairs)

    def add(self, sample: Sample, row: int | None, is_new: bool) -> bool:
        """Embed the parts of a sample that the model takes, false if there is none. `row` is that of its image, which
        is embedded if it is new."""
        clip, captions = sample.audio, sample.captions
        if self.sounds is not None and clip is not None:
            self.sounds.add(clip, sample.audio_key, image=row, captions=captions)
        if sample.image is None:
            return self.sounds is not None and clip is not None
        fused = self.fused if clip is not None and captions else None
        if not is_new and fused is None:
            return True
        pixels = self._preprocess(sample.image)
        if is_new:
            self.images.add(pixels)
        if fused is not None and clip is not None:
            fused.add((pixels, clip), (row, sample.audio_key), image=None, captions=captions)
        return True

    def retrieval_of_sounds(self, images: Tensor, encode_text: EncodeText, dims: Sequence[int]) -> Directions:
        """Retrieval by and of sounds, alone and beside their images, as far as the model takes them."""
        rows = [rows.retrieval(images, encode_text, dims) for rows in (self.sounds, self.fused) if rows]
        return {direction: found for part in rows for direction, found in part.items()}


def _read(source: Source, positions: Iterable[int], inputs: _Inputs | None = None) -> _Seen:
    """The images of the usable samples; all parts of the usable ones are embedded by `inputs`."""
    seen = _Seen()
    for position, sample in read_samples(source, positions, seen.bad):
        row, is_new = seen.add(position, sample)
        if inputs is not None and not inputs.add(sample, row, is_new):
            seen.bad.append(BadSampleNote(sample.id, "no image"))
    return seen


def _labelled(
    model: EmbeddingModel, source: Source, batch_size: int, bar: Progress
) -> tuple[Tensor, list[tuple[int, str]]]:
    """Embeddings of the images of a source, and the pairs of row and label."""
    inputs = _Inputs(model, batch_size, images_only=True)
    seen = _read(source, bar.track(range(len(source)), description="embedding training images"), inputs)
    return inputs.images.embeddings(), list(seen.labels)


def _right_answers(test: _Seen) -> RightAnswers:
    num_captions = torch.tensor([len(captions) for captions in test.captions])
    image_of_caption = torch.arange(len(num_captions)).repeat_interleave(num_captions)
    return RightAnswers(image_of_caption, list(chain(*test.captions)), len(num_captions))


def _baselines(right: RightAnswers, test: _Seen, train: _Seen) -> dict[str, RetrievalMetrics]:
    """Those that can be fitted and take seconds, then chance."""
    found = {}
    described = [row for row, texts in enumerate(train.captions) if texts]
    captions = [train.captions[row] for row in described]
    for name, (_, model_of) in FITTED.items() if described else ():
        model = model_of(torch.stack([train.features[name][row] for row in described]), captions)
        if fits_in_seconds(model, right.num_images, len(right.texts)):
            images, texts = model.embed_images(torch.stack(test.features[name])), model.embed_texts(right.texts)
            found[name] = metrics_of_texts(images, texts, right)
    return {**found, CHANCE: chance(right)}


def _zero_shot(
    images: Tensor, test: _Seen, others: Set[str], encode_text: EncodeText, templates: Sequence[str]
) -> ZeroShotMetrics | None:
    """Zero-shot classification of the images that have a label, among their classes and `others`; None with fewer than
    two classes."""
    classes = sorted(test.classes | others)
    if not test.classes or len(classes) < 2:
        return None
    rows, labels = zip(*test.labels, strict=True)
    of_classes = class_embeddings(encode_text, classes, templates)
    return zero_shot_metrics(images[list(rows)], labels, of_classes, classes, templates, item=rows)
