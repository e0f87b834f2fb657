"""The identity of a run, as a short hash: everything that its results depend on, and nothing else.

Equal hashes mean the same run, wherever the study was started and whatever its variants are called.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import impresa
from impresa.config.experiment import ExperimentConfig, LabelsConfig
from impresa.config.locations import paths_of
from impresa.config.paths import DATA_PATHS, expanded, matches
from impresa.config.tree import hints, leaves, to_tree
from impresa.data.image_files import image_suffixes
from impresa.data.sources.folder import SOUND_SUFFIXES
from impresa.run_dir.environment import installed_version
from impresa.run_dir.layout import CONFIG, ENVIRONMENT, LOCK, MANIFEST

WITHOUT_EFFECT = frozenset(
    {
        "name",
        *(f"labels.{key}" for key in hints(LabelsConfig)),
        *(f"dataset.{key}" for key in ("num_workers", "prefetch_factor", "pin_memory", "persistent_workers")),
        "dataset.max_bad_fraction",
        *(f"trainer.logging.{key}" for key in ("log_interval", "project", "entity", "name", "wandb", "tensorboard")),
        *(f"trainer.checkpoint.{key}" for key in ("save_last", "filename")),
    }
)
"""Keys that no result of a finished run depends on. The number and kind of devices are none of them: they change the
batch, or the last digits of every number. Of those that may change when a run is resumed, these are a part."""

_NOT_IN_A_RUN = ("ablation", "cli", "reports")
"""Parts of the package that no result of a run depends on."""
_LIBRARIES = ("torch", "transformers")
_LENGTH = 16
"""Hexadecimal digits."""
Listing = Callable[[Path, frozenset[str] | None], str]


def identity(config: ExperimentConfig, code: str, data: str) -> str:
    """The hash of a run.

    Args:
        config: as `impresa.config.prepare` returns it, with the run's own seed.
        code: of `code_version`.
        data: of `data_fingerprint`.
    """
    return _digest([content(config), code, data])


def content(config: ExperimentConfig) -> dict[str, Any]:
    """By key the values that results depend on; files and folders are left to `data_fingerprint`."""
    left_out = WITHOUT_EFFECT | paths_of(config).keys()
    return {key: value for key, value in leaves(to_tree(config)) if key not in left_out}


@cache
def code_version() -> str:
    """A hash of the source of all that trains and evaluates, and of the versions of the libraries that compute."""
    package = Path(impresa.__file__).parent
    files = sorted(path.relative_to(package).as_posix() for path in package.rglob("*.py"))
    sources = [name for name in files if name.split("/")[0] not in _NOT_IN_A_RUN]
    digests = {name: sha256((package / name).read_bytes()).hexdigest() for name in sources}
    return _digest([digests, {name: installed_version(name) for name in _LIBRARIES}])


def data_fingerprint(config: ExperimentConfig) -> str:
    """A hash of the files that an experiment reads: data, models, and the runs that it stands on.

    Data are known by names, sizes and times of change, a run by its checksums. Where the folder lies does not count.
    The embedded data are drawn, so that config and code say all about them.
    """
    listing: Listing = cache(_listing)
    return _digest({key: _print(key, path, config, listing) for key, path in paths_of(config).items()})


def _print(key: str, path: str, config: ExperimentConfig, listing: Listing) -> Any:
    """The fingerprint of what one key names."""
    file = expanded(path)
    if key.endswith(".checkpoint") or key == "decoder.init_from":
        return _bytes_of(file / MANIFEST)
    if key == "dataset.class_names":
        return _bytes_of(file)
    if key == "dataset.image_root":
        return listing(file, _pictures_and_sounds())
    if file.is_dir():
        return listing(file, None)
    if key not in (f"dataset.{name}" for name in DATA_PATHS):
        return str(file)
    tables = [file] if file.exists() else sorted(map(Path, matches(str(file))))
    folders = sorted({table.parent for table in tables})
    root = os.path.commonpath(folders) if folders else ""
    found: list[Any] = [_line(os.path.relpath(table, root), table.stat()) for table in tables]
    if config.dataset.image_root is None:
        found += (listing(folder, _pictures_and_sounds()) for folder in folders)
    return found


def _listing(folder: Path, suffixes: frozenset[str] | None) -> str:
    """A hash of the names, sizes and times of change of the files in and below a folder, of some suffixes or all.

    Hidden files, and runs that lie among the data, are left out.
    """
    return _digest(sorted(_lines(folder, suffixes)))


def _lines(folder: Path, suffixes: frozenset[str] | None) -> Iterator[str]:
    todo, links, entered = [(str(folder), "")], list[tuple[str, str]](), set[tuple[int, int]]()
    while todo or links:  # a folder that is also linked goes by its own name, as in `impresa.data.disk`
        here, prefix = todo.pop() if todo else links.pop(links.index(min(links)))
        try:
            found = os.stat(here)
            with os.scandir(here) as listed:
                entries = list(listed)
        except OSError as error:
            yield f"{prefix}: {error.strerror}"
            continue
        place = (found.st_dev, found.st_ino)
        if place in entered or (prefix and _is_run({entry.name for entry in entries})):
            continue
        entered.add(place)
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                (links if entry.is_symlink() else todo).append((entry.path, f"{prefix}{entry.name}/"))
            elif suffixes is None or os.path.splitext(entry.name)[1].lower() in suffixes:
                yield _line(prefix + entry.name, _stat(entry))


def _is_run(names: set[str]) -> bool:
    return ENVIRONMENT in names and not names.isdisjoint((CONFIG, LOCK))


def _stat(entry: os.DirEntry[str]) -> os.stat_result | None:
    try:
        return entry.stat()
    except OSError:  # a link to nothing
        return None


def _line(name: str, found: os.stat_result | None) -> str:
    return f"{name}\0{found.st_size}\0{found.st_mtime_ns}" if found else name


@cache
def _pictures_and_sounds() -> frozenset[str]:
    return frozenset((*image_suffixes(), *SOUND_SUFFIXES))


def _bytes_of(file: Path) -> str | None:
    return sha256(file.read_bytes()).hexdigest() if file.is_file() else None


def _digest(value: Any) -> str:
    return sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:_LENGTH]
