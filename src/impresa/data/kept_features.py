"""A source whose images are decoded and encoded once, and are rows of numbers from then on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import cast

import numpy as np
from numpy.typing import NDArray

from impresa.data.dialogue import Dialogue
from impresa.data.feature_store import FeatureStore
from impresa.data.sample import Sample
from impresa.data.sources.base import BadSample, Blocks, FoundImage, Source, SourceOfImages

NONE = -1
"""In place of a row's place: the sample has no image, or none that can be used."""


class KeptSource:
    """The samples of another source. Once `use` was called they have what is kept of their image in its place.

    An image that is changed on disk after that is not noticed before the next training run.
    """

    def __init__(self, source: Source) -> None:
        self._source = cast("SourceOfImages", source)
        self._store: FeatureStore | None = None
        self._places: NDArray[np.int64] = np.empty(0, np.int64)

    def use(self, store: FeatureStore, places: Sequence[int]) -> None:
        """Take features from a store from now on: for each sample from a place, `NONE` for one without an image."""
        self._store, self._places = store, np.array(places, np.int64)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Sample:
        if self._store is None:
            return self._source[index]
        place = int(self._places[index])
        if place == NONE:
            sample = self._source[index]
            if sample.image is not None:
                raise BadSample(sample.id, "its image could not be used when the training began")
            return sample
        sample = self._source.without_image(index)
        try:
            return replace(sample, kept=self._store[place])
        except ValueError as error:
            raise BadSample(sample.id, str(error)) from error

    def image_at(self, index: int) -> FoundImage | None:
        """As `SourceOfImages.image_at`."""
        return self._source.image_at(index)

    def captions(self) -> Iterator[str]:
        return self._source.captions()

    def dialogues(self) -> Iterator[Dialogue]:
        return self._source.dialogues()

    def dialogues_by_sample(self) -> Iterator[tuple[Dialogue, ...]]:
        return self._source.dialogues_by_sample()

    def blocks(self) -> Blocks | None:
        return self._source.blocks()
