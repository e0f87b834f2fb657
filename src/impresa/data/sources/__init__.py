"""Sources of samples. Their kind follows from the path, or is `dataset.source`:

- `shapes`: the embedded procedural data set;
- a `*.parquet` file, a folder that holds such files, or a pattern like `data/part-*.parquet`;
- any other folder: images with captions; also one of its tables (`*.jsonl`, `*.csv`, `*.tsv`, `*.json`, `*.txt`).

A new kind of files is a subclass of `impresa.data.sources.rows.RowSource` and an entry of `_KINDS`.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cache
from glob import has_magic
from importlib import import_module
from typing import TYPE_CHECKING, cast

from impresa.config.dataset import DatasetConfig
from impresa.config.paths import EMBEDDED, expanded, looked_in
from impresa.data.disk import files_below
from impresa.data.shapes.scenes import Split
from impresa.data.sources.base import IMAGES_AND_CAPTIONS, BadSample, Blocks, Reading, Source, reading_of
from impresa.errors import DataError

if TYPE_CHECKING:
    from impresa.data.sources.rows import RowSource
    from impresa.data.sources.shapes import ShapesSource
    from impresa.data.sources.subset import Subset

logger = logging.getLogger(__name__)

__all__ = ["BadSample", "Blocks", "Reading", "Source", "Split", "reading_of"]
__all__ += ["kind_of", "open_path", "open_source", "open_train_and_val", "split_read"]


@dataclass(frozen=True)
class _Kind:
    suffixes: tuple[str, ...]
    """A path with one of them is of this kind, and so is a folder with such files in it, except for `folder`; but a
    file beside a folder of its name only describes it, as the parquet files of img2dataset do."""
    class_name: str
    """The `RowSource` in the module that has the name of the kind; it is imported only when it is used."""


_KINDS = {
    "folder": _Kind((".jsonl", ".csv", ".tsv", ".json", ".txt", ".token"), "FolderSource"),
    "parquet": _Kind((".parquet",), "ParquetSource"),
}
_FOLDER, _PATTERN = "folder", "parquet"
"""The kinds of a folder and of a pattern whose suffix does not decide."""


def open_source(config: DatasetConfig, split: Split, reading: Reading = IMAGES_AND_CAPTIONS) -> Source:
    """The samples of a split.

    A split without a path of its own is that of `shapes`, or is made from the training data: `val_fraction` of the
    images for validation, which are the test data too.

    Args:
        config: the data.
        split: which part.
        reading: the parts that are read beside images and captions.

    Raises:
        DataError: a path is missing or is no data of the stated kind.
    """
    split = split_read(config, split)
    if split != "test" and _divides(config):
        return open_train_and_val(config, reading)[split == "val"]
    val_path = config.train_path if config.val_path is None else config.val_path
    paths = {"train": config.train_path, "val": val_path, "test": config.test_path or config.train_path}
    return _open(config, paths[split], split, reading)


def split_read(config: DatasetConfig, split: Split) -> Split:
    """The split that stands for the one that is asked for: data without a test split are tested on `val`."""
    if split == "test" and config.test_path is None and kind_of(config, config.train_path) != EMBEDDED:
        return "val"
    return split


def open_train_and_val(config: DatasetConfig, reading: Reading = IMAGES_AND_CAPTIONS) -> tuple[Source, Source]:
    """Training and validation data, see `open_source`; cheaper than one by one if both come from the training path."""
    if not _divides(config):
        val = open_source(config, "val", reading)
        return open_source(config, "train", reading), val
    if config.val_fraction == 0:
        raise DataError("dataset.val_fraction: 0 leaves no validation data; raise it or set dataset.val_path")
    from impresa.data.sources.subset import split_by_image

    whole = _open(config, config.train_path, "train", reading)
    return split_by_image(cast("RowSource | Subset", whole), config.val_fraction)


def open_path(config: DatasetConfig, path: str, reading: Reading = IMAGES_AND_CAPTIONS) -> Source:
    """All samples of any data path, read with the columns of the config; of `shapes` the test split."""
    return _open(config, path, "test", reading)


def _divides(config: DatasetConfig) -> bool:
    """True if the validation data are a part of the training path."""
    return config.val_path is None and kind_of(config, config.train_path) != EMBEDDED


def _open(config: DatasetConfig, path: str, split: Split, reading: Reading) -> RowSource | Subset | ShapesSource:
    kind = kind_of(config, path)
    if kind == EMBEDDED:
        from impresa.data.sources.shapes import ShapesSource

        return ShapesSource(config.shapes, split, config.image_size, reading)
    source_class = getattr(import_module(f"{__name__}.{kind}"), _KINDS[kind].class_name)
    source: RowSource = source_class(path, config, reading, config.image_size if split == "train" else None)
    if not config.skip_unsupported_rows:
        return source
    from impresa.data.sources.subset import without_unsupported

    part = without_unsupported(source)
    if part.left_out:
        kinds = ", ".join(f"{kind} {number}" for kind, number in part.left_out.items())
        _say_once(f"{path}: {len(source) - len(part)} of {len(source)} rows are left out ({kinds})")
    return part


@cache
def _say_once(line: str) -> None:
    """Log a line, once in a process: training opens its data again for the evaluation."""
    logger.info(line)


def kind_of(config: DatasetConfig, path: str) -> str:
    """The kind of the data at a path: `dataset.source`, or what the path says. Raises `DataError` for no kind."""
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
    file = expanded(path)
    for name, kind in _KINDS.items():
        if file.suffix.lower() in kind.suffixes:
            return name
    if file.is_dir():
        kind_of = {suffix: name for name, kind in _KINDS.items() if name != _FOLDER for suffix in kind.suffixes}
        data = (found for found in files_below(file) if found.suffix in kind_of and not found.with_suffix("").is_dir())
        return next((kind_of[found.suffix] for found in data), _FOLDER)
    if file.exists():
        raise DataError(f"{path}: unknown kind of data; name a folder, a .parquet file, or shapes")
    if has_magic(path):
        return _PATTERN
    raise DataError(
        f"{path}: no such file or folder; name existing data, or shapes for the embedded data{looked_in(path)}"
    )
