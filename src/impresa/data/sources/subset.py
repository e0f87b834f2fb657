"""A part of a source's rows: those of kinds that are read, and the division into training and validation by image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from hashlib import blake2b
from itertools import chain, compress

import numpy as np
from numpy.typing import NDArray

from impresa.data.dialogue import Dialogue
from impresa.data.sample import Sample
from impresa.data.sources.base import Blocks, FoundImage, Source
from impresa.data.sources.rows import RowSource
from impresa.errors import DataError


class Subset:
    """The samples of another source for which `chosen` (N,) is true, in its order.

    `left_out` has the number of rows of each kind that were left out because they are not read.
    """

    def __init__(
        self, source: RowSource | Subset, chosen: NDArray[np.bool_], left_out: Mapping[str, int] | None = None
    ) -> None:
        self._source = source
        self._chosen = chosen
        self._indices = np.flatnonzero(chosen)
        self.left_out = dict(left_out or {})

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Sample:
        return self._source[int(self._indices[index])]

    def without_image(self, index: int) -> Sample:
        return self._source.without_image(int(self._indices[index]))

    def image_at(self, index: int) -> FoundImage | None:
        return self._source.image_at(int(self._indices[index]))

    def captions(self) -> Iterator[str]:
        return chain.from_iterable(self.captions_by_sample())

    def captions_by_sample(self) -> Iterator[tuple[str, ...]]:
        return compress(self._source.captions_by_sample(), self._chosen)

    def dialogues(self) -> Iterator[Dialogue]:
        return chain.from_iterable(self.dialogues_by_sample())

    def dialogues_by_sample(self) -> Iterator[tuple[Dialogue, ...]]:
        return compress(self._source.dialogues_by_sample(), self._chosen)

    def image_keys(self) -> Iterator[str]:
        return compress(self._source.image_keys(), self._chosen)

    def names_image(self) -> Iterator[bool]:
        return compress(self._source.names_image(), self._chosen)

    def groups(self, column: str) -> Iterator[str | None]:
        return compress(self._source.groups(column), self._chosen)

    def blocks(self) -> Blocks | None:
        whole = self._source.blocks()
        if whole is None:
            return None
        ends = np.searchsorted(self._indices, np.cumsum(whole.lengths))
        lengths = np.diff(ends, prepend=0)
        files = tuple(compress(whole.files, lengths))
        return replace(whole, lengths=tuple(int(length) for length in lengths if length), files=files)


def has_images(source: Source) -> bool:
    """True if a row of the source names an image; no image is decoded."""
    return not isinstance(source, RowSource | Subset) or any(source.names_image())


def without_unsupported(source: RowSource) -> Subset:
    """The rows of a source less those of kinds that are not read, which are counted by kind.

    Raises:
        DataError: none is left.
    """
    kinds = list(source.unsupported())
    left_out = Counter(kind for kind in kinds if kind)
    if left_out.total() == len(kinds):
        raise DataError(f"data: all {len(kinds)} rows are {' or '.join(left_out)}; name rows of one image each")
    return Subset(source, np.array([kind is None for kind in kinds]), left_out)


def split_by_image(
    source: RowSource | Subset, val_fraction: float, group_column: str | None = None
) -> tuple[Subset, Subset]:
    """Training and validation part of a source; samples of the same image, or of one group, are in the same part.

    The images with the smallest hashes are held out: `val_fraction` of them, at least one, at most all but one. So the
    parts depend on the images alone, not on their order, and hardly change when images are added.

    Raises:
        DataError: the source has fewer than two images.
    """
    keys = source.image_keys()
    if group_column is not None:
        groups = source.groups(group_column)
        keys = (key if group is None else f"group {group}" for key, group in zip(keys, groups, strict=True))
    digests = (blake2b(key.encode(errors="surrogateescape"), digest_size=8).digest() for key in keys)
    hashes = np.frombuffer(b"".join(digests), dtype="<u8")
    images = np.unique(hashes)
    if len(images) < 2:
        raise DataError("data: a single image cannot be divided into training and validation; set dataset.val_path")
    num_held_out = min(max(round(val_fraction * len(images)), 1), len(images) - 1)
    held_out = hashes <= images[num_held_out - 1]
    return Subset(source, ~held_out), Subset(source, held_out)
