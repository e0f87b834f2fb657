"""Where samples come from: the kind of data is told by its path, or by `dataset.source`."""

from __future__ import annotations

from typing import Literal

from impresa.config.experiment import DatasetConfig
from impresa.data.sources.base import BadSample as BadSample
from impresa.data.sources.base import Blocks as Blocks
from impresa.data.sources.base import Source as Source
from impresa.data.sources.shapes import ShapesSource
from impresa.errors import DataError

Split = Literal["train", "val", "test"]


def open_source(config: DatasetConfig, split: Split) -> Source:
    """The samples of a split.

    Raises:
        DataError: the path is missing or is no data of the stated kind.
    """
    return _open(config, config.train_path, split)


def open_path(config: DatasetConfig, path: str) -> Source:
    """All samples of any data path, read with the columns that the config names; `shapes` is its test split.

    Raises:
        DataError: the path is missing or is no data of the stated kind.
    """
    return _open(config, path, "test")


def _open(config: DatasetConfig, path: str, split: Split) -> Source:
    if path == "shapes":
        return ShapesSource(config.shapes, split, config.image_size)
    raise DataError(f"{path}: unknown kind of data; give `shapes`")
