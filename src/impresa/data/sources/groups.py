"""Groups of samples that are variants of one thing: an epoch of training draws one of each."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from impresa.data.sources.base import Source
from impresa.data.sources.rows import RowSource
from impresa.data.sources.subset import Subset

logger = logging.getLogger(__name__)


def groups_of(source: Source, column: str | None) -> NDArray[np.int64] | None:
    """(N,) number of each sample's group, by `column`; None if no sample has one, which is warned of."""
    if column is None or not isinstance(source, RowSource | Subset):
        return None
    names = list(source.groups(column))
    if not any(names):
        logger.warning(
            "dataset.group_column: the training data have no %r, so every sample is drawn each epoch", column
        )
        return None
    return numbered(names)


def numbered(names: Iterable[str | None]) -> NDArray[np.int64]:
    """(N,) a number for each name, the same for equal ones; each None has a number of its own."""
    numbers: dict[str | int, int] = {}
    return np.array(
        [numbers.setdefault(index if name is None else name, len(numbers)) for index, name in enumerate(names)]
    )
