"""What is searched for: words, pictures, sounds or several of them as one vector, and what the results must not be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from impresa.config.paths import expanded
from impresa.data.audio import Clip
from impresa.data.image_files import image_suffixes
from impresa.data.sources.folder import SOUND_SUFFIXES
from impresa.errors import DataError
from impresa.tasks.arguments import is_number
from impresa.tasks.inputs import Picture, Sound

if TYPE_CHECKING:
    from impresa.tasks.alignment.embedder import EmbeddingModel

NOT_WEIGHT = 0.5
"""Of what the results must not be like."""


@dataclass(frozen=True)
class Query:
    """Examples and words, which become one vector.

    q = unit(w * unit(mean of the words' vectors) + (1 - w) * unit(mean of the examples' vectors) - n * unit(mean of the
    vectors of what is not wanted)), with w = `weight` and n = 0.5; without words w is 0, without examples it is 1. So
    the results are ranked by their cosine to what is wanted, less half of that to what is not.
    """

    texts: Sequence[str] = ()
    images: Sequence[Picture] = ()
    sounds: Sequence[Sound] = ()
    without: Sequence[str | Picture | Sound] = ()
    """What the results must not be like: words, or the paths of pictures and sounds."""
    weight: float = 0.5
    """Of the words where there are examples too, from 0 to 1."""

    def joined(self, other: Query) -> Query:
        """The parts of both, with the other's weight."""
        return Query(
            [*self.texts, *other.texts],
            [*self.images, *other.images],
            [*self.sounds, *other.sounds],
            [*self.without, *other.without],
            other.weight,
        )

    def vector(self, model: EmbeddingModel) -> Tensor:
        """(E,), of length one.

        Raises:
            DataError: there is nothing to search for, an example cannot be read, or the parts cancel each other.
        """
        if not is_number(self.weight) or not 0 <= self.weight <= 1:
            raise DataError(f"weight: {self.weight!r} is no number from 0 to 1; it is that of the words")
        words = _mean(model, texts=self.texts)
        examples = _mean(model, images=self.images, sounds=self.sounds)
        if words is None and examples is None:
            raise DataError("query: there is nothing to search for; give words, a picture or a sound")
        if words is None or examples is None:
            wanted = cast("Tensor", examples if words is None else words)
        else:
            wanted = F.normalize(self.weight * words + (1 - self.weight) * examples, dim=0)
        unwanted = parts_of(self.without)
        return less(wanted, _mean(model, unwanted.texts, unwanted.images, unwanted.sounds))


def less(wanted: Tensor, against: Tensor | None) -> Tensor:
    """(E,) of length one: what is wanted, less half of what is not. Raises `DataError` if nothing is left."""
    wanted = wanted if against is None else wanted - NOT_WEIGHT * against
    if not wanted.norm() > 1e-6:
        raise DataError("query: its parts cancel each other; change the words or the weight")
    return F.normalize(wanted, dim=0)


def query_of(value: Any) -> Query:
    """A query as it is given, see `parts_of`; one that is ready stays as it is."""
    return value if isinstance(value, Query) else parts_of(listed(value))


def parts_of(values: Sequence[Any]) -> Query:
    """Values sorted into words, pictures and sounds. A text is the path of a file if there is one of that name, which
    has an ending; any other text is words.

    Raises:
        DataError: a text ends like a picture or a sound, and there is no such file.
    """
    texts: list[str] = []
    images: list[Any] = []
    sounds: list[Any] = []
    for value in values:
        suffix = Path(value).suffix.lower() if isinstance(value, str | Path) else ""
        if suffix and expanded(str(value)).is_file():
            (sounds if suffix in SOUND_SUFFIXES else images).append(value)  # a file of another kind is no image either
        elif isinstance(value, str) and _is_missing(value, suffix):
            raise DataError(f"{value}: there is no such file; name one, or say words as a text of their own")
        elif isinstance(value, str):
            texts.append(value)
        elif _is_sound(value):
            sounds.append(value)
        else:
            images.append(value)
    return Query(texts, images, sounds)


def listed(value: Any) -> list[Any]:
    """One value or several as a list, None as nothing; samples and their rate are one."""
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) and not _is_sound(value) else [value]


def _is_missing(text: str, suffix: str) -> bool:
    """True for what can only be meant as a path: words that end in `.jpg` have spaces, and no slashes."""
    return (suffix in image_suffixes() or suffix in SOUND_SUFFIXES) and (" " not in text.strip() or "/" in text)


def _is_sound(value: Any) -> bool:
    is_pair = isinstance(value, tuple) and len(value) == 2 and any(map(is_number, value))
    return is_pair or isinstance(value, Clip) or (isinstance(value, dict) and "sampling_rate" in value)


def _mean(
    model: EmbeddingModel, texts: Sequence[Any] = (), images: Sequence[Any] = (), sounds: Sequence[Any] = ()
) -> Tensor | None:
    """(E,) of length one, the mean of all vectors; None of nothing."""
    if blank := [text for text in texts if isinstance(text, str) and not text.strip()]:
        raise DataError(f"query: the words {blank[0]!r} are empty; say what to search for")
    found = [
        encode(list(values))
        for encode, values in ((model.encode_text, texts), (model.encode_image, images), (model.encode_audio, sounds))
        if values
    ]
    return F.normalize(torch.cat(found).mean(dim=0), dim=0) if found else None
