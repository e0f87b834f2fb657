"""The examples of an evaluation that the report shows: queries and answers with their pictures, in `gallery.json`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, StringConstraints

MAX_SIMILARITY = 256
"""Images in a stored similarity matrix."""
DataUri = Annotated[str, StringConstraints(pattern=r"^data:image/(png|jpeg);base64,[A-Za-z0-9+/]+={0,2}$")]
"""A picture within a page: a stored one that points elsewhere would be fetched by whoever opens the report."""


@dataclass(frozen=True)
class AnsweredQuestion:
    """A question of some type (`kind`), its expected answer and the model's, for the report."""

    image: DataUri | None
    question: str
    expected: str
    answer: str
    right: bool
    kind: str | None = None
    other: str | None = None
    """The answer to the same question about another image; None where there was none to try."""
    seen: DataUri | None = None
    """The image as the model saw it; None where that is the image itself."""


@dataclass(frozen=True)
class Answer:
    """One candidate that a query found."""

    score: float
    """Cosine similarity."""
    right: bool
    caption: str | None = None
    """The text found, for an image query."""
    image: DataUri | None = None
    """The picture found, for a text query."""


@dataclass(frozen=True)
class Example:
    """A query and the first answers it found, best first."""

    captions: Annotated[tuple[str, ...], Field(min_length=1)]
    """Text query: the query. Image query: the captions that would be right."""
    image: DataUri | None
    """Image query: the picture."""
    answers: tuple[Answer, ...]
    seen: DataUri | None = None
    """Image query: the picture as the model saw it; None where that is the picture itself."""


@dataclass(frozen=True)
class PictureMap:
    """A map drawn over a picture."""

    title: str
    image: DataUri


@dataclass(frozen=True)
class ExplainedPicture:
    """Maps over one image of the parts that the model looks at."""

    image: DataUri
    words: str
    """The text that the image is compared with, or question and answer."""
    maps: tuple[PictureMap, ...]


@dataclass(frozen=True)
class Gallery:
    """Examples for the report: a few queries at even distances through the data, not picked by hand."""

    image_queries: tuple[Example, ...] = ()
    text_queries: tuple[Example, ...] = ()
    similarity: tuple[tuple[float, ...], ...] = ()
    """Cosine similarities of a small sample: row i is an image, column j the caption of image j."""
    similarity_captions: tuple[str, ...] = ()
    questions: tuple[AnsweredQuestion, ...] = ()
    wrong: tuple[AnsweredQuestion, ...] = ()
    """Questions, of all those with a wrong answer, at even distances."""
    explained: tuple[ExplainedPicture, ...] = ()

    def __post_init__(self) -> None:
        num = len(self.similarity)
        if num > MAX_SIMILARITY or (num and {num} != {len(self.similarity_captions), *map(len, self.similarity)}):
            raise ValueError(f"the similarity matrix is not square, has other captions, or over {MAX_SIMILARITY} rows")
