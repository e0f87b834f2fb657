"""Sources of samples. Their kind follows from the path, or is `dataset.source`:

- `shapes`: the embedded procedural data set;
- a `*.parquet` file, a folder that holds such files, or a pattern like `data/part-*.parquet`;
- any other folder: images with captions; also one of its tables (`*.jsonl`, `*.csv`, `*.json`).

A new kind of files is a subclass of `impresa.data.sources.rows.RowSource` and an entry of `_KINDS`.
"""

from __future__ import annotations

from dataclasses import dataclass
from glob import has_magic
from importlib import import_module
from typing import TYPE_CHECKING, cast

from impresa.config.experiment import DatasetConfig
from impresa.config.paths import EMBEDDED, expanded
from impresa.data.shapes.scenes import Split as Split
from impresa.data.sources.base import IMAGES_AND_CAPTIONS
from impresa.data.sources.base import BadSample as BadSample
from impresa.data.sources.base import Blocks as Blocks
from impresa.data.sources.base import Reading as Reading
from impresa.data.sources.base import Source as Source
from impresa.data.sources.base import reading_of as reading_of
from impresa.data.sources.subset import split_by_image
from impresa.errors import DataError

if TYPE_CHECKING:
    from impresa.data.sources.rows import RowSource


@dataclass(frozen=True)
class _Kind:
    """A kind of files, by its value of `dataset.source`."""

    suffixes: tuple[str, ...]
    """A path with one of them is of this kind, and so is a folder with such files in it, `folder` excepted."""
    class_name: str
    """The `RowSource` in the module that is named like the kind; it is imported only when it is used."""


_KINDS = {
    "folder": _Kind((".jsonl", ".csv", ".json"), "FolderSource"),
    "parquet": _Kind((".parquet",), "ParquetSource"),
}
_FOLDER, _PATTERN = "folder", "parquet"
"""The kinds of a folder and of a pattern that no suffix tells."""


def open_source(config: DatasetConfig, split: Split, reading: Reading = IMAGES_AND_CAPTIONS) -> Source:
    """The samples of a split.

    A split without a path of its own is that of `shapes`, or is made from the training data: `val_fraction` of the
    images for validation, which stands in for the test data too.

    Args:
        config: the data.
        split: which part.
        reading: what is read beside images and captions.

    Raises:
        DataError: a path is missing or is no data of the stated kind.
    """
    if split == "test" and config.test_path is None and _kind(config, config.train_path) != EMBEDDED:
        split = "val"
    if split != "test" and _divides(config):
        return open_train_and_val(config, reading)[split == "val"]
    paths = {"train": config.train_path, "val": _val_path(config), "test": config.test_path or config.train_path}
    return _open(config, paths[split], split, reading)


def open_train_and_val(config: DatasetConfig, reading: Reading = IMAGES_AND_CAPTIONS) -> tuple[Source, Source]:
    """Training and validation data; cheaper than opening them one by one when both come from the training path.

    Raises:
        DataError: a path is missing or is no data of the stated kind.
    """
    if not _divides(config):
        val = _open(config, _val_path(config), "val", reading)
        return _open(config, config.train_path, "train", reading), val
    if config.val_fraction == 0:
        raise DataError("dataset.val_fraction: 0 leaves no validation data; raise it or set dataset.val_path")
    return split_by_image(_open_files(config, config.train_path, reading, config.image_size), config.val_fraction)


def open_path(config: DatasetConfig, path: str, reading: Reading = IMAGES_AND_CAPTIONS) -> Source:
    """All samples of any data path, read with the columns that the config names; of `shapes` the test split.

    Raises:
        DataError: the path is missing or is no data of the stated kind.
    """
    return _open(config, path, "test", reading)


def _divides(config: DatasetConfig) -> bool:
    """True where the validation data are a part of the training path."""
    return config.val_path is None and _kind(config, config.train_path) != EMBEDDED


def _val_path(config: DatasetConfig) -> str:
    return config.train_path if config.val_path is None else config.val_path


def _open(config: DatasetConfig, path: str, split: Split, reading: Reading) -> Source:
    if _kind(config, path) == EMBEDDED:
        from impresa.data.sources.shapes import ShapesSource

        return ShapesSource(config.shapes, split, config.image_size, reading)
    return _open_files(config, path, reading, config.image_size if split == "train" else None)


def _open_files(config: DatasetConfig, path: str, reading: Reading, shrink_to_px: int | None) -> RowSource:
    kind = _kind(config, path)
    source_class = getattr(import_module(f"{__name__}.{kind}"), _KINDS[kind].class_name)
    return cast("RowSource", source_class(path, config, reading, shrink_to_px))


def _kind(config: DatasetConfig, path: str) -> str:
    kind = config.source
    if kind == "auto":
        return EMBEDDED if path == EMBEDDED else _kind_of_files(path)
    if kind not in (EMBEDDED, *_KINDS):
        names = f"{', '.join([EMBEDDED, *list(_KINDS)[:-1]])} or {list(_KINDS)[-1]}"
        raise DataError(f"dataset.source: {kind} cannot be read; use {names}")
    if (kind == EMBEDDED) != (path == EMBEDDED):
        raise DataError(f"{path}: not data of dataset.source={kind}; set dataset.source=auto or another path")
    return kind


def _kind_of_files(path: str) -> str:
    if not path.strip():
        raise DataError("data: the path is empty; name existing data, or shapes for the embedded data")
    place = expanded(path)
    for name, kind in _KINDS.items():
        if place.suffix.lower() in kind.suffixes:
            return name
    if place.is_dir():
        others = [(name, kind) for name, kind in _KINDS.items() if name != _FOLDER]
        held = (name for name, kind in others for suffix in kind.suffixes if any(place.rglob(f"*{suffix}")))
        return next(held, _FOLDER)
    if place.exists():
        raise DataError(f"{path}: unknown kind of data; name a folder, a .parquet file, or shapes")
    if has_magic(path):
        return _PATTERN
    raise DataError(f"{path}: no such file or folder; name existing data, or shapes for the embedded data")
