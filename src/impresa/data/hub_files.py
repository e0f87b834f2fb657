"""The arrow files of a split that the `datasets` library wrote: in a folder of `save_to_disk`, or for an id of the hub.

Files on disk are read without the library. An id is looked up by it, and downloaded where it is not in its cache.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError

from impresa.config.describe import listed
from impresa.config.hub_names import SAVED, SAVED_SPLITS, SUFFIX, HubName, hub_name, is_saved
from impresa.config.paths import expanded, looked_in
from impresa.data.class_names import ClassNames
from impresa.data.disk import read_regular
from impresa.data.sources.base import say_once
from impresa.errors import DataError, ImpresaError
from impresa.files import inside
from impresa.foreign_text import printable
from impresa.hub import hub_is_away, import_optional, offline
from impresa.json_files import first_fault

_MAX_BYTES = 16 << 20
"""Of a description."""
_OLDEST = 4
"""Older ones run scripts that come with the data."""
_Name = Annotated[str, Field(min_length=1, max_length=1000)]


@dataclass(frozen=True)
class HubFiles:
    """The files of one split."""

    name: str
    """For messages."""
    files: tuple[Path, ...]
    """In the order of their rows."""
    root: Path
    """Folder that the files lie in."""
    allowed: tuple[Path, ...]
    """Folders that images and sounds may lie in, where a row names them by a path."""


@dataclass(frozen=True)
class HubParquet:
    """The parquet files of one split, at their addresses."""

    addresses: tuple[str, ...]
    """In the order of their names."""
    class_names: Mapping[str, ClassNames]
    """Names of the labels of each column of type `ClassLabel`, also where only the data set's description has them."""


class _File(BaseModel):
    filename: _Name


class _Saved(BaseModel):
    data_files: Annotated[list[_File], Field(alias="_data_files", max_length=1_000_000)]
    indices: Annotated[list[_File] | None, Field(alias="_indices_data_files")] = None


class _SavedSplits(BaseModel):
    splits: Annotated[list[_Name], Field(max_length=10_000)]


def hub_files(path: str) -> HubFiles:
    """The files of a folder of `save_to_disk`, of a single arrow file, or of an id, see `hub_name`.

    Raises:
        DataError: there is no such data set, configuration or split, or its description is damaged.
        ConfigError: an id needs the `datasets` library, which is not installed.
    """
    try:
        name = hub_name(path)
    except ValueError as error:
        raise DataError(f"{path}: {error}{looked_in(path)}") from error
    return _saved(path) if name is None else _of_hub(path, name)


def check_at_hand(path: str) -> None:
    """Refuse an id that can neither be fetched nor be in the cache, before anything heavy is imported.

    Raises:
        DataError: as `hub_files`.
    """
    with suppress(ValueError):  # which is told later
        if (name := hub_name(path)) is not None:
            _why_away(path, name)


def _why_away(path: str, name: HubName) -> str | None:
    """Why the hub cannot be asked for a data set, see `hub_is_away`."""
    from huggingface_hub import constants

    away = hub_is_away(f"`impresa data check {path}`", constants.HF_HOME)
    if away and not _may_be_cached(name.id):
        raise DataError(f"{path}: it is not in the cache, and {away}")
    if away and name.revision:
        raise DataError(
            f"{path}: which revision the cache holds cannot be told, and {away.partition(';')[0]}; leave it out"
        )
    return away


def _saved(path: str) -> HubFiles:
    folder = expanded(path)
    if folder.is_file() and folder.name.lower().endswith(SUFFIX):
        return HubFiles(path, (folder,), folder.parent, (folder.parent,))
    if not is_saved(folder):
        fix = f"name a folder that save_to_disk wrote, with a {SAVED} or {SAVED_SPLITS}, or leave dataset.source out"
        raise DataError(f"{path}: was not written by the datasets library; {fix}")
    if not (folder / SAVED).is_file():
        splits = _read(folder / SAVED_SPLITS, _SavedSplits).splits
        chosen = _split(path, None, splits, f"{path}/{{}}")
        return _saved(str(_inside(folder, chosen, folder / SAVED_SPLITS)))
    described = _read(folder / SAVED, _Saved)
    if described.indices:
        raise DataError(f"{path}: its rows are in another order (indices), as old versions save them; save it again")
    files = tuple(_inside(folder, file.filename, folder / SAVED) for file in described.data_files)
    if not files:
        raise DataError(f"{path}: {SAVED} names no files; save the data set again")
    return HubFiles(path, files, folder, (folder,))


def _read(file: Path, kind: type[Any]) -> Any:
    try:
        return kind.model_validate_json(read_regular(file, _MAX_BYTES))
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror or error}); save the data set again") from error
    except ValidationError as error:
        raise DataError(f"{file}: {first_fault(error)}; save the data set again") from error
    except ValueError as error:
        raise DataError(f"{file}: {error}; save the data set again") from error


def _inside(folder: Path, name: str, file: Path) -> Path:
    try:
        return inside(folder, name, directly=True)
    except ValueError as error:
        raise DataError(f"{file}: {error}; save the data set again") from error


def _split(path: str, wanted: str | None, splits: Sequence[str], form: str) -> str:
    """The split that is asked for, else `train`, or the only one."""
    there = listed(map(printable, splits), "and")
    if not splits:
        raise DataError(f"{path}: has no splits; save it again with some")
    chosen = wanted or ("train" if "train" in splits else splits[0])
    if chosen not in splits or (wanted is None and chosen != "train" and len(splits) > 1):
        fault = f"there is no split {wanted}, but" if wanted else "there are the splits"
        raise DataError(f"{path}: {fault} {there}; name one, as {form.format(printable(splits[0]))}")
    if wanted is None and len(splits) > 1:
        say_once(logging.INFO, f"{path}: the split {chosen} is read, of {there}; {form.format('SPLIT')} names another")
    return chosen


def parquet_on_hub(path: str) -> HubParquet:
    """The parquet files of an id; nothing is fetched but their names.

    Raises:
        DataError: there is no such data set, configuration or split, the hub does not answer, or it has other files.
        ConfigError: the `datasets` library is not installed.
    """
    name = hub_name(path)
    assert name is not None
    if away := _why_away(path, name):
        raise DataError(f"{path}: dataset.streaming fetches files from the hub, and {away}; or leave it out")
    datasets = _library(path, name)
    with _explained(path, None), _quietly(datasets):
        builder = datasets.load_dataset_builder(name.id, name.config, revision=name.revision)
        found, features = builder.config.data_files or {}, builder.info.features or {}
    if builder.name != "parquet":
        fault = f"its files are read as {builder.name}, and dataset.streaming reads parquet files alone"
        raise DataError(f"{path}: {fault}; leave it out, or read tar shards by hf://datasets/{name.id}/*.tar")
    split = _chosen_split(path, name, list(found))
    labels = {column: kind.names for column, kind in features.items() if isinstance(kind, datasets.ClassLabel)}
    return HubParquet(
        tuple(sorted(map(str, found[split]))),
        {column: {str(number): label for number, label in enumerate(names)} for column, names in labels.items()},
    )


def _of_hub(path: str, name: HubName) -> HubFiles:
    from huggingface_hub import constants

    away = _why_away(path, name)
    datasets = _library(path, name)
    with _explained(path, away), _quietly(datasets), offline(datasets.config) if away else nullcontext():
        found: Mapping[str, Any] = datasets.load_dataset(
            name.id, name.config, revision=name.revision, keep_in_memory=False
        )
    split = _chosen_split(path, name, list(found))
    files = tuple(Path(file["filename"]) for file in found[split].cache_files)
    if not files:
        raise DataError(f"{path}: its split {split} has no rows; name another")
    downloads = Path(datasets.config.DOWNLOADED_DATASETS_PATH)
    copies = Path(constants.HF_HUB_CACHE) / f"datasets--{name.id.replace('/', '--')}"
    return HubFiles(path, files, Path(os.path.commonpath([file.parent for file in files])), (downloads, copies))


def _library(path: str, name: HubName) -> Any:
    """The `datasets` library, new enough, and where it cannot take an id for a folder."""
    datasets = import_optional("dataset.source", "datasets", "'impresa[hub]'", user="hub")
    if int(datasets.__version__.partition(".")[0]) < _OLDEST:
        raise DataError(f"{path}: needs datasets {_OLDEST} or newer; pip install -U datasets")
    if os.path.exists(name.id):
        raise DataError(f"{path}: {name.id} is a folder here, which the library would read; start elsewhere")
    return datasets


@contextmanager
def _explained(path: str, away: str | None) -> Iterator[None]:
    """Raise whatever the library raises as one line; `away` says why the hub is not asked."""
    try:
        yield
    except ImpresaError:
        raise
    except Exception as error:  # the hub, the formats and the libraries behind them raise nearly everything
        first_line = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
        reason = f"it is not whole in the cache ({first_line}), and {away}" if away else f"{first_line}; check the name"
        raise DataError(f"{path}: {printable(reason)}") from error


def _chosen_split(path: str, name: HubName, splits: Sequence[str]) -> str:
    return _split(path, name.split, splits, f"{path.partition('#')[0]}#{{}}")


def _may_be_cached(id: str) -> bool:
    """True if the library's cache may have the data set; it is not asked itself, for its import takes a while. It calls
    folders `ORG___NAME`, the name in its own way of writing words."""
    from huggingface_hub import constants

    home = os.environ.get("HF_DATASETS_CACHE") or os.path.join(constants.HF_HOME, "datasets")
    letters = id.replace("/", "").replace("_", "").lower()
    with suppress(OSError):
        return any(folder.replace("_", "").lower() == letters for folder in os.listdir(home))
    return False


@contextmanager
def _quietly(datasets: Any) -> Iterator[None]:
    """Without the library's notices, and without its bars where the output is no terminal."""
    log, before = datasets.utils.logging, datasets.utils.logging.get_verbosity()
    hides = datasets.utils.is_progress_bar_enabled() and not sys.stderr.isatty()
    log.set_verbosity_error()
    if hides:
        datasets.utils.disable_progress_bars()
    try:
        yield
    finally:
        log.set_verbosity(before)
        if hides:
            datasets.utils.enable_progress_bars()
