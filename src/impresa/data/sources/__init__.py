"""Sources of samples. Their kind follows from the path, or is `dataset.source`:

- `shapes`: the embedded procedural data set;
- a `*.parquet` file, a folder that holds such files, or a pattern like `data/part-*.parquet` or `data/{a,b}.parquet`;
- `hub://ORG/NAME`, a folder that `save_to_disk` of the `datasets` library wrote, or one of its `*.arrow` files;
- the same of tar shards (`.tar`, `.tar.gz`, `.tgz`), also `shards/{0000..0099}.tar`, and addresses such as
  `s3://bucket/{0000..0099}.tar`; of parquet files too, whose folders need `dataset.source=parquet`;
- any other folder: images with captions; also one of its tables (`*.jsonl`, `*.csv`, `*.tsv`, `*.json`, `*.txt`).

A new kind of files is a subclass of `impresa.data.sources.rows.RowSource` and an entry of `_KINDS`.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, cast

from impresa.config.augmentation import shrink_to_px
from impresa.config.dataset import DatasetConfig
from impresa.config.hub_names import SUFFIX, is_hub_name, is_on_hub, is_saved
from impresa.config.paths import EMBEDDED, expanded, fix_of_missing, is_pattern, looked_in, matches
from impresa.config.shard_names import PIPE, address_name, is_address, shown_address
from impresa.data.disk import folders_below, paths_of
from impresa.data.shapes.scenes import Split
from impresa.data.sources.base import IMAGES_AND_CAPTIONS, BadSample, Blocks, Reading, Source, reading_of, say_once
from impresa.errors import DataError

if TYPE_CHECKING:
    from impresa.data.sources.rows import RowSource
    from impresa.data.sources.shapes import ShapesSource
    from impresa.data.sources.subset import Subset

__all__ = ["BadSample", "Blocks", "Reading", "Source", "Split", "reading_of"]
__all__ += ["kind_of", "open_path", "open_source", "open_train_and_val", "split_read"]


@dataclass(frozen=True)
class _Kind:
    suffixes: tuple[str, ...]
    """A path with one of them is of this kind, and so is a folder with such files in it, except for `folder`; but a
    file beside a folder or a shard of its name only describes it, as the parquet files of img2dataset do."""
    class_name: str
    """The `RowSource` in the module that has the name of the kind; it is imported only when it is used."""


_KINDS = {
    "folder": _Kind((".jsonl", ".csv", ".tsv", ".json", ".txt", ".token"), "FolderSource"),
    "parquet": _Kind((".parquet",), "ParquetSource"),
    "webdataset": _Kind((".tar", ".tar.gz", ".tgz"), "ShardSource"),
    "hub": _Kind((SUFFIX,), "HubSource"),
}
_ELSEWHERE = ("webdataset", "parquet")
"""The kinds that are read from addresses."""
_FOLDER, _PATTERN, _SHARDS, _HUB = "folder", "parquet", "webdataset", "hub"
"""The kinds of a folder and of a pattern whose suffix does not decide, of addresses, and of what says in a file of its
own that it is of this kind."""


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
    return split_by_image(cast("RowSource | Subset", whole), config.val_fraction, config.group_column)


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
    if kind == _HUB:
        from impresa.data.hub_files import check_at_hand

        check_at_hand(path)
    reading = replace(reading, negatives=reading.negatives and split == "train")
    module, name = kind, _KINDS[kind].class_name
    if kind == _HUB and config.streaming and is_on_hub(path):
        module, name = "hub_parquet", "HubParquetSource"
    source_class = getattr(import_module(f"{__name__}.{module}"), name)
    shrink = _shrink_to_px(config) * reading.tiles if split == "train" else None
    source: RowSource = source_class(path, config, reading, shrink)
    if not config.skip_unsupported_rows:
        return source
    from impresa.data.sources.subset import without_unsupported

    part = without_unsupported(source)
    if part.left_out:
        kinds = ", ".join(f"{kind} {number}" for kind, number in part.left_out.items())
        say_once(logging.INFO, f"{path}: {len(source) - len(part)} of {len(source)} rows are left out ({kinds})")
    return part


def _shrink_to_px(config: DatasetConfig) -> int:
    spare = 1.0 if config.reduced_decode else 2.0
    return shrink_to_px(config.image_size, config.augmentation, config.augmentation_options, spare)


def kind_of(config: DatasetConfig, path: str) -> str:
    """The kind of the data at a path: `dataset.source`, or what the path says. Raises `DataError` for no kind."""
    kind = config.source
    if kind == "auto":
        return EMBEDDED if path == EMBEDDED else _kind_of_files(path)
    if (kind == EMBEDDED) != (path == EMBEDDED):
        raise DataError(f"{path}: not data of dataset.source={kind}; set dataset.source=auto or another path")
    return kind


def _kind_of_files(path: str) -> str:
    if not path.strip():
        raise DataError("data: the path is empty; name existing data, or shapes for the embedded data")
    file = expanded(path)
    if is_hub_name(path) or is_saved(file):
        return _HUB
    is_elsewhere = is_address(path) or path.startswith(PIPE)
    named = _kind_of_name(address_name(path) if is_elsewhere else file.name)
    if is_elsewhere:
        if named not in (None, *_ELSEWHERE):
            fault = "only tar shards and parquet are read from the web"
            raise DataError(f"{shown_address(path)}: {fault}; download it first")
        return named or _SHARDS
    if named:
        return named
    if file.is_dir():
        suffixes = chain.from_iterable(facts.suffixes for kind, facts in _KINDS.items() if kind not in (_FOLDER, _HUB))
        ends = tuple(suffixes)
        found = paths_of(folders_below(file), lambda name: name.lower().endswith(ends))
        data = (_kind_of_name(file.name) for file in found if not _describes(file))
        return next(data, None) or _FOLDER
    if file.exists():
        raise DataError(f"{path}: unknown kind of data; name a folder, a .parquet or .tar file, or shapes")
    if is_pattern(path):
        with suppress(ValueError):  # of too many names, which the source tells
            first = next(matches(path), None)
            return _PATTERN if first is None else _kind_of_files(first)
        return _PATTERN
    raise DataError(f"{path}: no such file or folder; {fix_of_missing(path)}{looked_in(path)}")


def _kind_of_name(name: str) -> str | None:
    return next((kind for kind, facts in _KINDS.items() if name.lower().endswith(facts.suffixes)), None)


def _describes(file: Path) -> bool:
    """True for a file beside a folder or a shard of its name."""
    return file.with_suffix("").is_dir() or (file.suffix != ".tar" and file.with_suffix(".tar").exists())
