"""Where samples come from. The kind of data is told by the path, or by `dataset.source`:

- `shapes`: the embedded procedural data set;
- a `*.parquet` file, a folder that holds such files, or a pattern like `data/part-*.parquet`;
- any other folder: images with captions; also one of its tables (`*.jsonl`, `*.csv`, `*.json`).
"""

from __future__ import annotations

from glob import glob, has_magic
from pathlib import Path
from typing import Literal

from impresa.config.experiment import DatasetConfig
from impresa.config.paths import expanded
from impresa.data.sources.base import BadSample as BadSample
from impresa.data.sources.base import Blocks as Blocks
from impresa.data.sources.base import DivisibleSource
from impresa.data.sources.base import Source as Source
from impresa.data.sources.shapes import ShapesSource
from impresa.data.sources.subset import split_by_image
from impresa.errors import DataError

Split = Literal["train", "val", "test"]
Kind = Literal["shapes", "folder", "parquet"]

SHAPES = "shapes"


_TABLES = (".jsonl", ".csv", ".json")


def open_source(
    config: DatasetConfig, split: Split, *, audio_seconds: float | None = None, dialogues: bool = False
) -> Source:
    """The samples of a split.

    A split without a path of its own is that of `shapes`, or is made from the training data: `val_fraction` of the
    images for validation, which stands in for the test data too.

    Args:
        config: the data.
        split: which part.
        audio_seconds: read sounds too, each up to so many seconds; then a sample needs only two of image, caption and
            sound. None reads no sound, and every sample has an image and a caption.
        dialogues: read questions and answers too; then a sample needs them, and no caption.

    Raises:
        DataError: a path is missing or is no data of the stated kind.
    """
    if split == "test" and config.test_path is None and _kind(config, config.train_path) != SHAPES:
        split = "val"
    if split != "test" and _divides(config):
        return open_train_and_val(config, audio_seconds=audio_seconds, dialogues=dialogues)[split == "val"]
    paths = {"train": config.train_path, "val": _val_path(config), "test": config.test_path or config.train_path}
    return _open(config, paths[split], split, audio_seconds, dialogues)


def open_train_and_val(
    config: DatasetConfig, *, audio_seconds: float | None = None, dialogues: bool = False
) -> tuple[Source, Source]:
    """Training and validation data; cheaper than opening them one by one when both come from the training path.

    Raises:
        DataError: a path is missing or is no data of the stated kind.
    """
    if not _divides(config):
        val = _open(config, _val_path(config), "val", audio_seconds, dialogues)
        return _open(config, config.train_path, "train", audio_seconds, dialogues), val
    if config.val_fraction == 0:
        raise DataError("dataset.val_fraction: 0 leaves no validation data; raise it or set dataset.val_path")
    whole = _open_files(config, config.train_path, config.image_size, audio_seconds, dialogues)
    return split_by_image(whole, config.val_fraction)


def open_path(
    config: DatasetConfig, path: str, *, audio_seconds: float | None = None, dialogues: bool = False
) -> Source:
    """All samples of any data path, read with the columns that the config names; of `shapes` the test split.

    Raises:
        DataError: the path is missing or is no data of the stated kind.
    """
    return _open(config, path, "test", audio_seconds, dialogues)


def _divides(config: DatasetConfig) -> bool:
    """Whether the validation data are a part of the training path."""
    return config.val_path is None and _kind(config, config.train_path) != SHAPES


def _val_path(config: DatasetConfig) -> str:
    return config.train_path if config.val_path is None else config.val_path


def _open(config: DatasetConfig, path: str, split: Split, audio_seconds: float | None, dialogues: bool) -> Source:
    if _kind(config, path) == SHAPES:
        with_sound = audio_seconds is not None
        return ShapesSource(config.shapes, split, config.image_size, with_sound=with_sound, dialogues=dialogues)
    return _open_files(config, path, config.image_size if split == "train" else None, audio_seconds, dialogues)


def _open_files(
    config: DatasetConfig, path: str, shrink_to_px: int | None, audio_seconds: float | None, dialogues: bool
) -> DivisibleSource:
    # Imported here because only parquet needs pyarrow.
    if _kind(config, path) == "parquet":
        from impresa.data.sources.parquet import ParquetSource

        return ParquetSource(
            _parquet_files(path), config, shrink_to_px=shrink_to_px, audio_seconds=audio_seconds, dialogues=dialogues
        )
    from impresa.data.sources.folder import FolderSource

    place = expanded(path)
    table = place if place.is_file() else None
    return FolderSource(
        place.parent if table else place,
        config,
        table=table,
        shrink_to_px=shrink_to_px,
        audio_seconds=audio_seconds,
        dialogues=dialogues,
    )


def _kind(config: DatasetConfig, path: str) -> Kind:
    match config.source:
        case "shapes" | "folder" | "parquet" as kind:
            if (kind == SHAPES) != (path == SHAPES):
                raise DataError(f"{path}: not data of dataset.source={kind}; set dataset.source=auto or another path")
            return kind
        case "auto":
            return _kind_of_path(path)
        case kind:
            raise DataError(f"dataset.source: {kind} cannot be read; use shapes, folder or parquet")


def _kind_of_path(path: str) -> Kind:
    if path == SHAPES:
        return "shapes"
    place = expanded(path)
    if not path.strip():
        raise DataError("data: the path is empty; name existing data, or shapes for the embedded data")
    if place.suffix.lower() == ".parquet" or (has_magic(path) and not place.exists()):
        return "parquet"
    if not place.exists():
        raise DataError(f"{path}: no such file or folder; name existing data, or shapes for the embedded data")
    if place.suffix.lower() in _TABLES:
        return "folder"
    if not place.is_dir():
        raise DataError(f"{path}: unknown kind of data; name a folder, a .parquet file, or shapes")
    return "parquet" if any(place.rglob("*.parquet")) else "folder"


def _parquet_files(path: str) -> list[Path]:
    place = expanded(path)
    if place.is_dir():
        files = sorted(place.rglob("*.parquet"))
    elif place.exists():
        files = [place]
    else:
        files = sorted(Path(name) for name in glob(str(place), recursive=True) if Path(name).is_file())
    if not files:
        raise DataError(f"{path}: no parquet files there; name existing ones")
    return files
