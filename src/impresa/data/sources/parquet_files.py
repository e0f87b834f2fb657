"""Open parquet files of one process, each once: reading a footer takes longer than reading a small row group.

A file at an address is read from a copy of the whole file, in the cache that tar shards have too; its footer, and
columns of text that are read once from end to end, come by themselves.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from glob import glob
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from impresa.config.paths import expanded, missing_name
from impresa.config.shard_names import braces_expanded, is_address, shown_address
from impresa.data.disk import files_below, open_regular
from impresa.data.shards import remote
from impresa.data.shards.cache import ShardCache
from impresa.data.shards.places import Shard, files_at, open_tar
from impresa.data.sources.rows import found_of
from impresa.errors import DataError

SUFFIX = ".parquet"
_MOST_OPEN = 64

Place = Path | Shard
"""A file on this machine, or one at an address."""


def places_of(path: str) -> Sequence[Place]:
    """The parquet files of a path, see `files_of`, or of an address of them.

    Raises:
        DataError: there are none, or they cannot be reached.
    """
    if not is_address(path):
        return files_of(path)
    found = files_at([address for name in _names(path) for address in remote.listed(name, (SUFFIX,))])
    if not found:
        raise DataError(f"{shown_address(path)}: no parquet files there; name some")
    return found


def files_of(path: str) -> list[Path]:
    """The parquet files of a path: itself, those in or below a folder, or those of a pattern, or of several paths in
    braces. Raises `DataError` for none."""
    names = [path] if expanded(path).exists() else _names(path)
    files = _files_of(path) if names == [path] else sorted({file for name in names for file in _files_of(name)})
    missing = path if not files else missing_name(path)
    if missing is not None:
        raise DataError(f"{missing}: no parquet files there; name existing ones")
    return files


def _names(path: str) -> list[str]:
    try:
        return braces_expanded(path)
    except ValueError as error:
        where = shown_address(path) if is_address(path) else path
        raise DataError(f"{where}: {error}; name fewer files") from error


def _files_of(name: str) -> list[Path]:
    whole = expanded(name)
    if whole.is_dir():
        files = [file for file in files_below(whole) if file.suffix.lower() == SUFFIX]
        return [file for file in files if not _describes(file, files)]
    if whole.exists():
        return [whole]
    return sorted(file for file in map(Path, glob(str(whole), recursive=True)) if file.is_file())


def _describes(file: Path, files: Sequence[Path]) -> bool:
    """True for a file beside a folder of its name without other parquet files, as img2dataset writes it."""
    folder = file.with_suffix("")
    return folder.is_dir() and not any(other.is_relative_to(folder) for other in files)


def root_of(path: str, places: Sequence[Place]) -> Path:
    """The folder of all files; of those at an address the address, which is no folder on this machine."""
    files = [place for place in places if isinstance(place, Path)]
    if not files:
        return Path(shown_address(path) if is_address(path) else path)
    return Path(os.path.commonpath([file.parent for file in files]))


def shown(place: Place) -> str:
    """A file for a message."""
    return str(place) if isinstance(place, Path) else shown_address(place.place)


@contextmanager
def opened_once(place: Place) -> Iterator[pq.ParquetFile]:
    """A file of which little is read, and nothing is copied. Raises what pyarrow, the system or fsspec raise."""
    if isinstance(place, Path):
        yield _mapped(place)
        return
    with remote.opened_anywhere(place.place) as file:
        yield pq.ParquetFile(file, pre_buffer=False)


def _mapped(file: Path) -> pq.ParquetFile:
    """A file, mapped into memory. Raises what pyarrow raises, and the errors of `open_regular`."""
    open_regular(file).close()
    return pq.ParquetFile(file, memory_map=True, pre_buffer=False)


class ParquetFiles:
    """Files that are opened when they are read from, and anew when they have changed; the longest unused are closed
    beyond 64.

    Nothing is inherited: a process that was forked, or sent this, opens files of its own.

    Args:
        cache: of copies of those at an address.
    """

    def __init__(self, cache: ShardCache) -> None:
        self._cache = cache
        self._process = os.getpid()
        self._open: OrderedDict[Place, tuple[tuple[int, int] | None, pq.ParquetFile]] = OrderedDict()

    def __getitem__(self, place: Place) -> pq.ParquetFile:
        """The open file; the errors are those of pyarrow, of the system, and `DataError` for one that cannot be
        fetched."""
        if self._process != os.getpid():
            self._open, self._process = OrderedDict(), os.getpid()
        facts = found_of(place) if isinstance(place, Path) else (place.num_bytes or 0, 0)  # a copy stays as it is
        if self._open.get(place, (None, None))[0] != facts or facts is None:
            self._open.pop(place, None)
            self._open[place] = facts, self._opened(place)
            if len(self._open) > _MOST_OPEN:
                self._open.popitem(last=False)
        self._open.move_to_end(place)
        return self._open[place][1]

    def _opened(self, place: Place) -> pq.ParquetFile:
        if isinstance(place, Path):
            return _mapped(place)
        return pq.ParquetFile(open_tar(place, self._cache), pre_buffer=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}
