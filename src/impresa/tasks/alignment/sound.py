"""Retrieval between sounds and the images and captions of the same samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import blake2b

import torch
from torch import Tensor

from impresa.data.audio import Clip
from impresa.data.sample import Sample
from impresa.evaluation.baselines import CHANCE, chance
from impresa.evaluation.results import DirectionMetrics, RetrievalMetrics, dimension_rows
from impresa.evaluation.retrieval import RightAnswers, metrics_of_texts

SOUNDS_AT_A_TIME = 32
"""Sounds held before they are embedded; long ones are much larger than their embeddings."""

Directions = dict[str, dict[str, DirectionMetrics]]


class Sounds:
    """The sounds of an evaluation, embedded as they come. Sounds of one rate that are equal, sample by sample, are one.

    Args:
        encode: turns N clips into embeddings (N, E).
    """

    def __init__(self, encode: Callable[[list[Clip]], Tensor]) -> None:
        self.num_samples = 0
        """Samples that have a sound."""
        self._encode = encode
        self._waiting: list[Clip] = []
        self._embedded: list[Tensor] = []
        self._number: dict[bytes, int] = {}
        self._images: list[tuple[int, int]] = []
        self._captions: list[tuple[int, str]] = []

    def add(self, sample: Sample, image: int | None) -> None:
        """Take up a sample's sound, if it has one; `image` is the row of its image among the embedded ones."""
        if sample.audio is None:
            return
        self.num_samples += 1
        content = f"{sample.audio.rate_hz}:".encode() + sample.audio.samples.numpy().tobytes()
        name = blake2b(content, digest_size=16).digest()
        if name not in self._number:
            self._number[name] = len(self._number)
            self._waiting.append(sample.audio)
        if len(self._waiting) == SOUNDS_AT_A_TIME:
            self._embed_waiting()
        number = self._number[name]
        if image is not None:
            self._images.append((number, image))
        self._captions += ((number, caption) for caption in sample.captions)

    def retrieval(
        self, images: Tensor, encode_text: Callable[[list[str]], Tensor], dims: Sequence[int] = ()
    ) -> Directions:
        """Metrics by direction (`audio_to_text` and so on) and name (`model`, fewer dimensions, `chance`).

        Each pair of modalities is judged on the samples that have both.

        Args:
            images: (I, E) embeddings of the images.
            encode_text: turns N strings into (N, E).
            dims: Matryoshka dimensions to cut the embeddings to.
        """
        self._embed_waiting()
        directions: Directions = {}
        if self._captions:
            texts, pairs = _number_texts(self._captions)
            sounds = torch.cat(self._embedded)
            directions |= _directions("audio", "text", sounds, encode_text(texts), pairs, dims=dims)
        if self._images:
            directions |= _directions("audio", "image", torch.cat(self._embedded), images, self._images, dims=dims)
        return directions

    def _embed_waiting(self) -> None:
        if self._waiting:
            self._embedded.append(self._encode(self._waiting))
            self._waiting = []


class Fused:
    """The fused embeddings of images and sounds, beside the captions of the same samples.

    Args:
        encode: turns N preprocessed images and N clips into embeddings (N, E).
    """

    def __init__(self, encode: Callable[[list[Tensor], list[Clip]], Tensor]) -> None:
        self._encode = encode
        self._waiting: list[tuple[Tensor, Clip]] = []
        self._embedded: list[Tensor] = []
        self._captions: list[tuple[int, str]] = []
        self._num_samples = 0

    def add(self, sample: Sample, pixels: Tensor) -> None:
        """Take up a sample, if it has a sound and a caption; `pixels` is its image as the model wants it."""
        if sample.audio is None or not sample.captions:
            return
        self._captions += ((self._num_samples, caption) for caption in sample.captions)
        self._num_samples += 1
        self._waiting.append((pixels, sample.audio))
        if len(self._waiting) == SOUNDS_AT_A_TIME:
            self._embed_waiting()

    def retrieval(self, encode_text: Callable[[list[str]], Tensor], dims: Sequence[int] = ()) -> Directions:
        """Metrics of `image+audio_to_text` and `text_to_image+audio` by name, as of `Sounds.retrieval`."""
        self._embed_waiting()
        if not self._captions:
            return {}
        texts, pairs = _number_texts(self._captions)
        return _directions("image+audio", "text", torch.cat(self._embedded), encode_text(texts), pairs, dims=dims)

    def _embed_waiting(self) -> None:
        if self._waiting:
            images, sounds = zip(*self._waiting, strict=True)
            self._embedded.append(self._encode(list(images), list(sounds)))
            self._waiting = []


def _number_texts(captions: Sequence[tuple[int, str]]) -> tuple[list[str], list[tuple[int, int]]]:
    """The different texts, and (row, caption) as (row, number of the text)."""
    texts = list(dict.fromkeys(caption for _, caption in captions))
    number = {text: i for i, text in enumerate(texts)}
    return texts, [(row, number[caption]) for row, caption in captions]


def _directions(
    one: str, other: str, rows: Tensor, others: Tensor, pairs: Sequence[tuple[int, int]], *, dims: Sequence[int]
) -> Directions:
    """Both directions between `rows` of one kind and `others`; `pairs` are the numbers that belong together."""
    used = list(dict.fromkeys(row for row, _ in pairs))
    place = {row: i for i, row in enumerate(used)}
    of_pair = torch.tensor([place[row] for row, _ in pairs])
    right = RightAnswers(of_pair, [str(number) for _, number in pairs], len(used))
    rows, others = rows[used], others[[int(number) for number in right.texts]]

    def metrics(dim: int) -> RetrievalMetrics:
        return metrics_of_texts(rows[:, :dim], others[:, :dim], right)

    found = {
        "model": metrics(rows.shape[1]),
        **dimension_rows({dim: metrics(dim) for dim in dims}),
        CHANCE: chance(right),
    }
    return {
        f"{one}_to_{other}": {name: both.image_to_text for name, both in found.items()},
        f"{other}_to_{one}": {name: both.text_to_image for name, both in found.items()},
    }
