"""Retrieval between sounds and the images and captions of the same samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import blake2b

import torch
from torch import Tensor

from impresa.data.audio import Clip
from impresa.data.batch import Sample
from impresa.evaluation.baselines import CHANCE, chance
from impresa.evaluation.results import DirectionMetrics, RetrievalMetrics, dimension_rows
from impresa.evaluation.retrieval import RightAnswers, metrics_of_texts

SOUNDS_AT_A_TIME = 32
"""Sounds held before they are embedded; long ones are much larger than their embeddings."""

Directions = dict[str, dict[str, DirectionMetrics]]


class Sounds:
    """The sounds of an evaluation, embedded as they come. Sounds that are equal, sample by sample, are one sound.

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
        name = blake2b(sample.audio.samples.numpy().tobytes(), digest_size=16).digest()
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
            texts = list(dict.fromkeys(caption for _, caption in self._captions))
            row_of_text = {text: row for row, text in enumerate(texts)}
            pairs = [(sound, row_of_text[caption]) for sound, caption in self._captions]
            directions |= _directions("text", torch.cat(self._embedded), encode_text(texts), pairs, dims)
        if self._images:
            directions |= _directions("image", torch.cat(self._embedded), images, self._images, dims)
        return directions

    def _embed_waiting(self) -> None:
        if self._waiting:
            self._embedded.append(self._encode(self._waiting))
            self._waiting = []


def _directions(
    other: str, sounds: Tensor, others: Tensor, pairs: Sequence[tuple[int, int]], dims: Sequence[int]
) -> Directions:
    """Both directions between sounds and another modality; `pairs` are the rows that belong together."""
    rows = list(dict.fromkeys(sound for sound, _ in pairs))
    place = {row: i for i, row in enumerate(rows)}
    of_pair = torch.tensor([place[sound] for sound, _ in pairs])
    right = RightAnswers(of_pair, [str(row) for _, row in pairs], len(rows))
    sounds, others = sounds[rows], others[[int(row) for row in right.texts]]

    def metrics(dim: int) -> RetrievalMetrics:
        return metrics_of_texts(sounds[:, :dim], others[:, :dim], right)

    found = {
        "model": metrics(sounds.shape[1]),
        **dimension_rows({dim: metrics(dim) for dim in dims}),
        CHANCE: chance(right),
    }
    return {
        f"audio_to_{other}": {name: both.image_to_text for name, both in found.items()},
        f"{other}_to_audio": {name: both.text_to_image for name, both in found.items()},
    }
