"""Retrieval between sounds and the images and captions of the same samples."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Generic

import torch
from torch import Tensor

from impresa.evaluation.results import DirectionMetrics, RetrievalMetrics, dimension_rows
from impresa.evaluation.retrieval import CHANCE, RightAnswers, chance, metrics_of_texts
from impresa.tasks.samples import Embedder, Item

SOUNDS_AT_A_TIME = 32
"""Sounds held before they are embedded; long ones are much larger than their embeddings."""

EncodeText = Callable[[list[str]], Tensor]
Directions = dict[str, dict[str, DirectionMetrics]]


class Rows(Generic[Item]):
    """One side of a retrieval: items that are embedded as they come, beside the images and captions of their samples.

    Args:
        name: the modality, as the names of directions have it.
        encode: turns N items into embeddings (N, E).
    """

    def __init__(self, name: str, encode: Callable[[list[Item]], Tensor]) -> None:
        self._name, self._embedder = name, Embedder(encode, SOUNDS_AT_A_TIME)
        self._row: dict[Hashable, int] = {}
        self._images: dict[tuple[int, str], None] = {}
        self._samples: set[tuple[int, int | None]] = set()
        self._captions: list[tuple[int, str]] = []

    def add(self, item: Item, key: Hashable, *, image: int | None, captions: Iterable[str]) -> None:
        """Add the item of a sample; items of equal `key` are one row. `image` is the row of the sample's image."""
        if key not in self._row:
            self._row[key] = len(self._row)
            self._embedder.add(item)
        row = self._row[key]
        self._samples.add((row, image))
        if image is not None:
            self._images[row, str(image)] = None
        self._captions += ((row, caption) for caption in captions)

    @property
    def num_samples(self) -> int:
        """Samples so far; those of equal items and one image are one."""
        return len(self._samples)

    def embeddings(self) -> Tensor:
        """(N, E) of the rows so far."""
        return self._embedder.embeddings()

    def retrieval(self, images: Tensor, encode_text: EncodeText, dims: Sequence[int] = ()) -> Directions:
        """Metrics by direction (`audio_to_text` and so on) and name (`model`, fewer dimensions, `chance`).

        Each pair of modalities is judged on the samples that have both. `images` are embeddings (I, E), `encode_text`
        turns N strings into (N, E), and `dims` are the Matryoshka dimensions that embeddings are cut to.
        """
        directions: Directions = {}
        if self._captions:
            directions |= self._directions("text", self._captions, encode_text, dims)
        if self._images:
            directions |= self._directions(
                "image", list(self._images), lambda names: images[[int(n) for n in names]], dims
            )
        return directions

    def _directions(
        self, other: str, pairs: list[tuple[int, str]], encode_other: EncodeText, dims: Sequence[int]
    ) -> Directions:
        """Both directions between the rows and `other`; `pairs` are the rows and names that belong together."""
        used = list(dict.fromkeys(row for row, _ in pairs))
        index = {row: i for i, row in enumerate(used)}
        of_pair = torch.tensor([index[row] for row, _ in pairs])
        right = RightAnswers(of_pair, [name for _, name in pairs], len(used))
        rows, others = self.embeddings()[used], encode_other(list(right.texts))

        def metrics(dim: int) -> RetrievalMetrics:
            return metrics_of_texts(rows[:, :dim], others[:, :dim], right)

        by_dimension = dimension_rows({dim: metrics(dim) for dim in dims})
        found = {"model": metrics(rows.shape[1]), **by_dimension, CHANCE: chance(right)}
        return {
            f"{self._name}_to_{other}": {name: both.image_to_text for name, both in found.items()},
            f"{other}_to_{self._name}": {name: both.text_to_image for name, both in found.items()},
        }
