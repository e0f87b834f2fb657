"""Examples for the report, at even distances through the data, and the pictures in them."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from functools import cache
from typing import TypeVar

from PIL import Image
from torch import Tensor

from impresa.data.sources.base import Source
from impresa.evaluation.results import Answer, Example, Gallery
from impresa.evaluation.retrieval import TIE, RightAnswers, unit_rows

NUM_QUERIES = 6
NUM_ANSWERS = 5
NUM_SIMILARITY = 32
THUMBNAIL_PX = 160
Item = TypeVar("Item")


def retrieval_gallery(
    source: Source, positions: Sequence[int], images: Tensor, texts: Tensor, right: RightAnswers
) -> Gallery:
    """A few queries with the first answers that they find, not picked by their outcome, and a small similarity matrix.

    The embeddings of images (I, E) and of different texts (G, E) belong to `right`; the images that are shown are read
    again from `source`, where their indices are `positions`.
    """
    images, texts = unit_rows(images, "image"), unit_rows(texts, "text")

    @cache
    def shown(image: int) -> str:
        picture = source[positions[image]].image
        assert picture is not None  # images without a picture were not embedded
        return data_uri(picture)

    def ask_image(image: int) -> Example:
        is_right = right.mask(image, image + 1)[0]
        return Example(
            captions=tuple(right.texts[text] for text in is_right.nonzero()[:, 0].tolist()),
            image=shown(image),
            answers=tuple(
                Answer(score, is_right, caption=right.texts[text])
                for text, score, is_right in _best(texts @ images[image], is_right)
            ),
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


def data_uri(image: Image.Image) -> str:
    """The thumbnail of a picture as a data URI."""
    kind, content = thumbnail(image)
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def thumbnail(image: Image.Image) -> tuple[str, bytes]:
    """Kind and content of a file with a picture of at most 160 pixels a side: small images stay as they are (`png`),
    others become `jpeg`."""
    small = image.convert("RGB")
    kind = "png" if max(small.size) <= THUMBNAIL_PX else "jpeg"
    small.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, kind, quality=85, optimize=True)
    return kind, buffer.getvalue()


def spread(items: Sequence[Item], num: int, *, offset: float = 0.0) -> list[Item]:
    """`num` items (or all, if there are fewer) at even distances."""
    num = min(num, len(items))
    return [items[int((i + offset) * len(items) / num)] for i in range(num)]


def _best(scores: Tensor, is_right: Tensor) -> list[tuple[int, float, bool]]:
    """Index, score and rightness of the best candidates; at a tie wrong ones come first, as in the metrics."""
    top = (scores - TIE * is_right).topk(min(NUM_ANSWERS, len(scores))).indices
    return list(zip(top.tolist(), [round(s, 4) for s in scores[top].tolist()], is_right[top].tolist(), strict=True))
