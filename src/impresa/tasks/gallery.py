"""A few retrieval examples as pictures and a small similarity matrix, for the report."""

from __future__ import annotations

import base64
import io

from PIL import Image
from torch import Tensor

from impresa.data.sources.base import Source
from impresa.evaluation.results import Answer, Example, Gallery
from impresa.evaluation.retrieval import TIE, RightAnswers, unit_rows

NUM_QUERIES = 6
NUM_ANSWERS = 5
NUM_SIMILARITY = 32
THUMBNAIL_PX = 160


class GalleryMaker:
    """Draws examples from an evaluated source.

    Args:
        source: the data; pictures are read from it again, only the few that are shown.
        positions: for each of the I images its index in `source`.
        images: (I, E) embeddings.
        texts: (G, E) embeddings of the different texts.
        right: the right answers of these images and texts.
    """

    def __init__(
        self, source: Source, positions: list[int], images: Tensor, texts: Tensor, right: RightAnswers
    ) -> None:
        self._source, self._positions, self._right = source, positions, right
        self._images, self._texts = unit_rows(images, "image"), unit_rows(texts, "text")
        self._thumbnails: dict[int, str] = {}

    def make(self) -> Gallery:
        """The examples: queries at even distances through the data, not picked by their outcome."""
        text_of_image = self._right.text_of_image()
        image_of_text = {text: image for image, text in reversed(text_of_image.items())}
        # Texts from between the image queries, so that the two lists show different scenes.
        text_queries = _spread(list(image_of_text), NUM_QUERIES, offset=0.5)
        sample = _spread(list(image_of_text), NUM_SIMILARITY)
        similarity = self._images[[image_of_text[text] for text in sample]] @ self._texts[sample].T
        return Gallery(
            image_queries=tuple(self._ask_image(image) for image in _spread(list(text_of_image), NUM_QUERIES)),
            text_queries=tuple(self._ask_text(text) for text in text_queries),
            similarity=tuple(tuple(round(score, 4) for score in row) for row in similarity.tolist()),
            similarity_captions=tuple(self._right.texts[text] for text in sample),
        )

    def _ask_image(self, image: int) -> Example:
        texts, is_right = self._right.texts, self._right.mask(image, image + 1)[0]
        found = _best(self._texts @ self._images[image], is_right)
        return Example(
            captions=tuple(texts[text] for text in is_right.nonzero()[:, 0].tolist()),
            image=self._thumbnail(image),
            answers=tuple(Answer(score=score, right=right, caption=texts[text]) for text, score, right in found),
        )

    def _ask_text(self, text: int) -> Example:
        found = _best(self._images @ self._texts[text], self._right.images_of(text))
        return Example(
            captions=(self._right.texts[text],),
            image=None,
            answers=tuple(Answer(score=score, right=right, image=self._thumbnail(i)) for i, score, right in found),
        )

    def _thumbnail(self, image: int) -> str:
        if image not in self._thumbnails:
            picture = self._source[self._positions[image]].image
            assert picture is not None  # images without a picture were not embedded
            self._thumbnails[image] = data_uri(picture)
        return self._thumbnails[image]


def data_uri(image: Image.Image) -> str:
    """A picture of at most 160 pixels a side as a data URI: small images stay as they are (PNG), others become JPEG."""
    small = image.convert("RGB")
    kind = "png" if max(small.size) <= THUMBNAIL_PX else "jpeg"
    small.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, kind, quality=85, optimize=True)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _spread(items: list[int], num: int, *, offset: float = 0.0) -> list[int]:
    """`num` items (or all, if there are fewer) at even distances."""
    num = min(num, len(items))
    return [items[int((i + offset) * len(items) / num)] for i in range(num)]


def _best(scores: Tensor, is_right: Tensor) -> list[tuple[int, float, bool]]:
    """Index, score and rightness of the best candidates; at a tie wrong ones come first, as in the metrics."""
    top = (scores - TIE * is_right).topk(min(NUM_ANSWERS, len(scores))).indices
    return list(zip(top.tolist(), [round(s, 4) for s in scores[top].tolist()], is_right[top].tolist(), strict=True))
