"""Evaluate a model on a source: embed everything once, then retrieval, baselines, zero-shot and examples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

import torch
from PIL.Image import Image
from rich.progress import Progress
from torch import Tensor

from impresa.config.experiment import FUSED_PAIR, DatasetConfig
from impresa.data.batch import Sample
from impresa.data.sources import BadSample, Source, Split
from impresa.errors import DataError
from impresa.evaluation.baselines import CHANCE, ColourHistogramModel, chance, colour_histogram
from impresa.evaluation.gallery import GalleryMaker
from impresa.evaluation.progress import progress_bar
from impresa.evaluation.results import BadSampleNote, Evaluation, RetrievalMetrics, ZeroShotMetrics
from impresa.evaluation.retrieval import RightAnswers, metrics_of_texts
from impresa.evaluation.sound import Fused, Sounds
from impresa.evaluation.zero_shot import check_templates, class_embeddings, zero_shot_metrics

if TYPE_CHECKING:
    from impresa.models.embedder import EmbeddingModel

HISTOGRAM = "colour histogram"
NUM_BASELINE_SAMPLES = 4096
EncodeText = Callable[[list[str]], Tensor]


@dataclass
class _Seen:
    """What is kept of a source's samples once their images are gone."""

    positions: list[int] = field(default_factory=list)
    captions: list[tuple[str, ...]] = field(default_factory=list)
    labels: list[str | None] = field(default_factory=list)
    histograms: list[Tensor] = field(default_factory=list)
    bad: list[BadSampleNote] = field(default_factory=list)

    def add(self, position: int, sample: Sample, image: Image) -> None:
        self.positions.append(position)
        self.captions.append(sample.captions)
        self.labels.append(sample.label)
        self.histograms.append(colour_histogram(image))

    @property
    def classes(self) -> set[str]:
        return {label for label in self.labels if label is not None}


def evaluate(
    model: EmbeddingModel,
    source: Source,
    *,
    data: str,
    train_source: Source | None = None,
    batch_size: int | None = None,
    device: torch.device | str | None = None,
    show_progress: bool = False,
) -> Evaluation:
    """Retrieval in both directions, baselines beside it, and zero-shot classification where there are labels.

    A model that hears is judged on the sounds of the data too. Every caption of every image takes part. Bad samples
    are skipped and listed. The prompts are the `dataset.prompt_templates` of the model's config.

    Args:
        model: the model; its weights are not changed.
        source: the data.
        data: what the data are called in the result.
        train_source: the data that the model was trained on. The colour-histogram baseline is fitted on up to 4096 of
            its samples, and their class names join those to choose from; None leaves the baseline out.
        batch_size: images or texts at a time. None: the config's evaluation batch size.
        device: where to compute. None: where the model is.
        show_progress: progress bars on standard error.

    Raises:
        DataError: no sample is usable, none has a caption or a label, or an embedding is NaN or infinite.
        ConfigError: a prompt template has no `{}`.
    """
    config = model.config.dataset
    batch_size = batch_size or config.eval_batch_size or config.batch_size
    encode_text = partial(model.encode_text, batch_size=batch_size, device=device, show_progress=show_progress)
    check_templates(config.prompt_templates)

    hears = model.config.audio_encoder is not None
    sounds = Sounds(partial(model.encode_audio, batch_size=batch_size, device=device)) if hears else None
    fuses = FUSED_PAIR in (model.config.losses.pairs or ())
    fused = Fused(partial(model.encode_image_audio, batch_size=batch_size, device=device)) if fuses else None
    with progress_bar(show_progress) as bar:
        test, embeddings = _embed(model, source, batch_size, device, bar, sounds=sounds, fused=fused)
        train = _look_at(train_source, bar) if train_source is not None else _Seen()
    if not test.positions and not (sounds and sounds.num_samples):
        raise nothing_usable(data, test.bad, "impresa data check PATH")

    dims = vision.mrl_dimensions if (vision := model.config.vision_encoder).use_mrl else ()
    evaluation = Evaluation(
        data=data,
        num_images=len(test.positions),
        num_texts=sum(map(len, test.captions)),
        num_distinct_texts=len({caption for captions in test.captions for caption in captions}),
        bad_samples=tuple(test.bad),
        num_sounds=sounds.num_samples if sounds else 0,
        sound={
            **(sounds.retrieval(embeddings, encode_text, dims) if sounds else {}),
            **(fused.retrieval(encode_text, dims) if fused else {}),
        },
        zero_shot=_zero_shot(embeddings, test, train, encode_text, config.prompt_templates),
    )
    if evaluation.num_texts:
        right = _right_answers(test)
        texts = encode_text(list(right.texts))
        return replace(
            evaluation,
            retrieval=metrics_of_texts(embeddings, texts, right),
            by_dimension={dim: metrics_of_texts(embeddings[:, :dim], texts[:, :dim], right) for dim in dims},
            baselines=_baselines(right, test, train),
            gallery=GalleryMaker(source, test.positions, embeddings, texts, right).make(),
        )
    if evaluation.zero_shot is None and not evaluation.sound:
        raise DataError(f"{data}: no captions, and fewer than two class names; there is nothing to evaluate")
    return evaluation


def nothing_usable(data: str, bad: Sequence[BadSampleNote], command: str) -> DataError:
    """The error that no sample can be used: up to three different reasons, each with the first sample that has it."""
    first_of = {note.reason: note.id for note in reversed(bad)}
    reasons = [f"{first_of[reason]}: {reason}" for reason in dict.fromkeys(note.reason for note in bad)]
    return DataError(f"{data}: no usable sample ({'; '.join(reasons[:3]) or 'it is empty'}); `{command}` lists them")


def name_of_data(config: DatasetConfig, split: Split) -> str:
    """What a split of the configured data is called in results; data without a test split are tested on `val`."""
    if split == "test" and config.test_path is None and config.train_path != "shapes":
        split = "val"
    path = {"train": config.train_path, "val": config.val_path, "test": config.test_path}[split]
    return f"{path or config.train_path}, {split} split"


def _embed(
    model: EmbeddingModel,
    source: Source,
    batch_size: int,
    device: torch.device | str | None,
    bar: Progress,
    *,
    sounds: Sounds | None,
    fused: Fused | None,
) -> tuple[_Seen, Tensor]:
    """The usable samples and the embeddings (I, E) of their images; sounds go to `sounds`, both to `fused`."""
    seen, embeddings = _Seen(), []

    def pixels() -> Iterator[Tensor]:
        # Preprocessed one by one: a batch of photographs would not fit into memory, a batch of small squares does.
        for position, sample in read_samples(
            source, bar.track(range(len(source)), description="embedding images"), seen.bad
        ):
            if sounds is not None:
                sounds.add(sample, None if sample.image is None else len(seen.positions))
            if sample.image is not None:
                seen.add(position, sample, sample.image)
                square = model.image_transform(sample.image)
                if fused is not None:
                    fused.add(sample, square)
                yield square
            elif sounds is None or sample.audio is None:
                seen.bad.append(BadSampleNote(sample.id, "no image"))

    stream = pixels()
    while batch := list(islice(stream, batch_size)):
        embeddings.append(model.encode_image(batch, batch_size=batch_size, device=device))
    return seen, torch.cat(embeddings) if embeddings else torch.zeros(0, 0)


def _look_at(train_source: Source, bar: Progress) -> _Seen:
    """What the baseline is fitted on: training samples at even distances, so that sorted data are seen whole."""
    seen, num = _Seen(), min(len(train_source), NUM_BASELINE_SAMPLES)
    positions = [i * len(train_source) // num for i in range(num)]
    for position, sample in read_samples(
        train_source, bar.track(positions, description="fitting the baseline"), seen.bad
    ):
        if sample.image is not None:
            seen.add(position, sample, sample.image)
    return seen


def _right_answers(test: _Seen) -> RightAnswers:
    num_captions = torch.tensor([len(captions) for captions in test.captions])
    image_of_caption = torch.arange(len(num_captions)).repeat_interleave(num_captions)
    captions = [caption for captions in test.captions for caption in captions]
    return RightAnswers(image_of_caption, captions, len(num_captions))


def _baselines(right: RightAnswers, test: _Seen, train: _Seen) -> dict[str, RetrievalMetrics]:
    baselines = {CHANCE: chance(right)}
    if any(train.captions):
        described = [row for row, captions in enumerate(train.captions) if captions]
        histogram = ColourHistogramModel(
            torch.stack([train.histograms[row] for row in described]), [train.captions[row] for row in described]
        )
        images, texts = histogram.embed_images(torch.stack(test.histograms)), histogram.embed_texts(right.texts)
        baselines = {HISTOGRAM: metrics_of_texts(images, texts, right), **baselines}
    return baselines


def _zero_shot(
    images: Tensor, test: _Seen, train: _Seen, encode_text: EncodeText, templates: Sequence[str]
) -> ZeroShotMetrics | None:
    """Zero-shot classification of the images that have a label; None with fewer than two classes."""
    classes = sorted(test.classes | train.classes)
    if not test.classes or len(classes) < 2:
        return None
    rows = [row for row, label in enumerate(test.labels) if label is not None]
    labels = [label for label in test.labels if label is not None]
    return zero_shot_metrics(
        images[rows], labels, class_embeddings(encode_text, classes, templates), classes, templates
    )


def read_samples(source: Source, positions: Iterable[int], bad: list[BadSampleNote]) -> Iterator[tuple[int, Sample]]:
    """The good samples and their positions. The others are noted in `bad`."""
    for position in positions:
        try:
            yield position, source[position]
        except BadSample as fault:
            bad.append(BadSampleNote(fault.id, fault.reason))
