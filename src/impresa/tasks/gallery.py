"""Examples for the report, at even distances through the data, and the pictures in them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache
from typing import TypeVar

from PIL.Image import Image, fromarray, new
from torch import Tensor, uint8

from impresa.data.audio import RATE_HZ, log_mel, resample
from impresa.data.images import ImageTransform
from impresa.data.sample import Sample
from impresa.data.sources.base import Source
from impresa.errors import ConfigError, DataError
from impresa.evaluation.gallery import Answer, Example, ExplainedPicture, Gallery, PictureMap
from impresa.evaluation.results import Evaluation
from impresa.evaluation.retrieval import TIE, RightAnswers, unit_rows
from impresa.inside.drawing import overlay
from impresa.inside.explanation import Explanation, Maps
from impresa.reports.pictures import data_uri
from impresa.tasks.base import Task, UsableModel
from impresa.tasks.samples import read_samples

NUM_QUERIES = 6
NUM_ANSWERS = 5
NUM_SIMILARITY = 32
SEEN_PX = 96
TILE_PX = 80
"""Side of each of several images."""
SOUND_PX = (160, 80)
"""Width and height of a sound's spectrogram."""
NUM_EXPLAINED, NUM_MAPS = 3, 4
NUM_ROWS = 8
"""Rows of squares that are covered for a text: 64 passes of the tower for each image."""
Item = TypeVar("Item")


def retrieval_gallery(
    source: Source,
    positions: Sequence[int],
    images: Tensor,
    texts: Tensor,
    right: RightAnswers,
    *,
    transform: ImageTransform,
) -> Gallery:
    """A few queries with the first answers that they find, not picked by their outcome, and a small similarity matrix.

    The embeddings of images (I, E) and of different texts (G, E) belong to `right`; the images that are shown are read
    again from `source`, where their indices are `positions`; `transform` is the model's.
    """
    images, texts = unit_rows(images, "image"), unit_rows(texts, "text")

    def picture_of(image: int) -> Image:
        picture = source[positions[image]].image
        assert picture is not None  # images without a picture were not embedded
        return picture

    @cache
    def shown(image: int) -> str:
        return data_uri(picture_of(image))

    def ask_image(image: int) -> Example:
        is_right = right.mask(image, image + 1)[0]
        return Example(
            captions=tuple(right.texts[text] for text in is_right.nonzero()[:, 0].tolist()),
            image=shown(image),
            answers=tuple(
                Answer(score, is_right, caption=right.texts[text])
                for text, score, is_right in _best(texts @ images[image], is_right)
            ),
            seen=seen(picture_of(image), transform),
        )

    def ask_text(text: int) -> Example:
        found = _best(images @ texts[text], right.images_of(text))
        answers = tuple(Answer(score, is_right, image=shown(image)) for image, score, is_right in found)
        return Example(captions=(right.texts[text],), image=None, answers=answers)

    text_of_image = right.text_of_image()
    image_of_text = {text: image for image, text in reversed(text_of_image.items())}
    sample = spread(list(image_of_text), NUM_SIMILARITY)
    similarity = images[[image_of_text[text] for text in sample]] @ texts[sample].T
    return Gallery(
        image_queries=tuple(map(ask_image, spread(list(text_of_image), NUM_QUERIES))),
        # Texts from between the image queries, so that the two lists show different scenes.
        text_queries=tuple(map(ask_text, spread(list(image_of_text), NUM_QUERIES, offset=0.5))),
        similarity=tuple(tuple(round(score, 4) for score in row) for row in similarity.tolist()),
        similarity_captions=tuple(right.texts[text] for text in sample),
    )


def seen(picture: Image, transform: ImageTransform) -> str | None:
    """A small picture of an image as the model sees it; None where that is the image itself."""
    square = transform.square(picture)
    return None if square is picture else data_uri(square, SEEN_PX)


def picture_of(sample: Sample) -> Image | None:
    """What a page shows of a sample: its image, several in rows, or the spectrogram of its sound, low pitches below."""
    if sample.more_images:
        return _in_rows(sample.images)
    if sample.image is not None or sample.audio is None:
        return sample.image
    loudness = log_mel(resample(sample.audio, RATE_HZ)).clamp(-1, 1)  # (F, M), silence to full scale
    return fromarray(((loudness.T.flip(0) + 1) * 127.5).to(uint8).numpy()).convert("RGB").resize(SOUND_PX)


def _in_rows(images: Sequence[Image]) -> Image:
    """A single picture of several, in reading order on a square grid."""
    columns = math.ceil(math.sqrt(len(images)))
    sheet = new("RGB", (columns * TILE_PX, math.ceil(len(images) / columns) * TILE_PX), "white")
    for number, image in enumerate(images):
        small = image.copy()
        small.thumbnail((TILE_PX - 2, TILE_PX - 2))
        sheet.paste(small, (number % columns * TILE_PX, number // columns * TILE_PX))
    return sheet


def with_explanations(evaluation: Evaluation, task: Task, model: UsableModel, source: Source) -> Evaluation:
    """The evaluation with what the model looks at in a few images of its source, at even distances; without those of
    which nothing can be shown."""
    found = []
    for _, sample in read_samples(source, spread(range(len(source)), NUM_EXPLAINED, offset=0.5), bad=[]):
        if sample.image is not None and not sample.more_images:
            with suppress(ConfigError, DataError):
                found.append(_drawn(model.explain(sample.image, task.words_of(sample), max_rows=NUM_ROWS)))
    return replace(evaluation, gallery=replace(evaluation.gallery, explained=tuple(found)))


def _drawn(explanation: Explanation) -> ExplainedPicture:
    """The first map of each kind, and more of the last kind where there are few kinds."""
    kinds = [section for section in explanation.sections if isinstance(section, Maps)]
    chosen = [(kind.title, kind.tiles[0]) for kind in kinds[:NUM_MAPS]]
    chosen += [(kinds[-1].title, tile) for tile in kinds[-1].tiles[1 : 1 + NUM_MAPS - len(chosen)]] if kinds else []
    maps = (
        PictureMap(f"{title}: {tile.label}", data_uri(overlay(explanation.picture, tile.values)))
        for title, tile in chosen
    )
    return ExplainedPicture(data_uri(explanation.picture), explanation.headline, tuple(maps))


def spread(items: Sequence[Item], num: int, *, offset: float = 0.0) -> list[Item]:
    """`num` items (or all, if there are fewer) at even distances."""
    num = min(num, len(items))
    return [items[int((i + offset) * len(items) / num)] for i in range(num)]


def _best(scores: Tensor, is_right: Tensor) -> list[tuple[int, float, bool]]:
    """Index, score and rightness of the best candidates; at a tie wrong ones come first, as in the metrics."""
    top = (scores - TIE * is_right).topk(min(NUM_ANSWERS, len(scores))).indices
    return list(zip(top.tolist(), [round(s, 4) for s in scores[top].tolist()], is_right[top].tolist(), strict=True))
