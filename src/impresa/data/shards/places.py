"""The shards of a path: which there are, an index of each, and a tar file of each to read from."""

from __future__ import annotations

import gzip
import logging
import os
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from glob import glob, has_magic
from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO, cast

from impresa.config.paths import expanded, looked_in
from impresa.config.shard_names import PIPE, address_name, braces_expanded, is_address, shown_address
from impresa.data.disk import files_below, open_regular
from impresa.data.shards import remote
from impresa.data.shards.cache import ShardCache
from impresa.data.shards.index import ShardIndex, build_index, load_index, save_index
from impresa.errors import DataError

logger = logging.getLogger(__name__)

SUFFIXES = (".tar", ".tar.gz", ".tgz")
INDEX_SUFFIX = ".impresa-index"
"""Of the index beside a shard."""
_GZIP = b"\x1f\x8b"
_CHUNK = 1 << 20
_BOMB_RATIO, _BOMB_BYTES = 100, 1 << 30
"""Tar files that shrink to less than a hundredth do not hold pictures; small ones may be anything."""
_LARGEST_INDEX = 1 << 30
AT_ONCE = 8
"""Shards that are fetched at the same time."""


@dataclass(frozen=True)
class Shard:
    """A shard as it was found."""

    name: str
    """Path relative to the folder of all shards, for the names of samples."""
    place: str
    """Path or address."""
    num_bytes: int | None
    """Size as it lies there; None if a server does not tell."""
    version: str
    """Changes with the content."""
    is_copied: bool
    """True for one that is read from a copy in the cache: one on the web, or under gzip."""

    @property
    def stamp(self) -> str:
        return f"{self.num_bytes} {self.version}"

    @property
    def key(self) -> str:
        """Name in the cache."""
        return blake2b(f"{self.place}\0{self.stamp}".encode(errors="surrogateescape"), digest_size=16).hexdigest()

    @property
    def index_beside(self) -> Path | None:
        return None if is_address(self.place) else Path(self.place + INDEX_SUFFIX)


def find_shards(path: str) -> list[Shard]:
    """The shards of a path: a file, a folder with such files in it or below it, a pattern, names in braces, or an
    address of them, in order.

    Raises:
        DataError: one is missing or cannot be read.
    """
    if path.startswith(PIPE):
        raise DataError(f"{path}: commands are not run; name the shards themselves, as files or addresses")
    try:
        names = [path] if not is_address(path) and os.path.exists(expanded(path)) else braces_expanded(path)
    except ValueError as error:
        raise DataError(f"{path}: {error}; name fewer shards") from error
    if is_address(path):
        shards = files_at([found for name in names for found in remote.listed(name, SUFFIXES)])
    else:
        files = [file for name in names for file in _files(name)]
        shards = list(map(_local_shard, files, _short_names([*map(os.path.abspath, files)])))
    if not shards:
        raise DataError(f"{shown_address(path) if is_address(path) else path}: no tar shards there; name some (.tar)")
    return shards


def files_at(addresses: Sequence[str]) -> list[Shard]:
    """The files at some addresses, which may be of any kind; they are asked for their sizes.

    Raises:
        DataError: there is none, or it cannot be reached.
    """
    names = _short_names([*map(address_name, addresses)])
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(
            pool.map(lambda address, name: Shard(name, address, *remote.facts_of(address), True), addresses, names)
        )


def indexed(shards: list[Shard], cache: ShardCache) -> list[ShardIndex]:
    """The index of each shard, made where it is missing or that of another shard.

    Raises:
        DataError: a shard cannot be read at all.
    """
    with ThreadPoolExecutor(AT_ONCE) as pool:
        of_remote = {one.place: pool.submit(_index, one, cache) for one in shards if is_address(one.place)}
        return [of_remote[one.place].result() if one.place in of_remote else _index(one, cache) for one in shards]


def open_tar(shard: Shard, cache: ShardCache) -> BinaryIO:
    """A shard as a plain tar file, or any other file that is copied, open for reading.

    Raises:
        OSError: it cannot be read, or not copied.
        ValueError: it is another one by now, is no regular file, or is too large for the cache; the message is the
            reason alone.
        DataError: it cannot be fetched.
    """
    if not shard.is_copied:
        return _opened(shard)

    def fill(file: BinaryIO) -> None:
        if not is_address(shard.place):
            with _opened(shard) as found:
                return _copy_tar(found, file, shard, cache.max_bytes)

        def fetch() -> None:
            file.seek(0)
            file.truncate()
            with remote.opened(shard.place) as found:
                _copy_tar(found, file, shard, cache.max_bytes)

        return remote.tried(shard.place, fetch)

    return cache.opened(shard.key, shard.num_bytes or 0, fill)


def _files(name: str) -> Iterator[Path]:
    path = expanded(name)
    if path.is_dir():
        yield from (file for file in files_below(path) if file.name.lower().endswith(SUFFIXES))
    elif os.path.exists(path):
        yield path
    elif has_magic(name):
        yield from (Path(found) for found in sorted(glob(str(path), recursive=True)) if Path(found).is_file())
    else:
        raise DataError(f"{name}: there is no such shard; name existing ones{looked_in(name)}")


def _short_names(paths: list[str]) -> list[str]:
    """The paths relative to their common folder."""
    common = os.path.commonpath([os.path.dirname(path) for path in paths]) if paths else ""
    return [os.path.relpath(path, common or ".") for path in paths]


def _local_shard(file: Path, name: str) -> Shard:
    try:
        with open_regular(file) as opened:
            facts = os.fstat(opened.fileno())
            is_gzip = opened.read(len(_GZIP)) == _GZIP
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: {getattr(error, 'strerror', None) or error}; name shards that can be read") from error
    return Shard(name, os.path.abspath(file), facts.st_size, str(facts.st_mtime_ns), is_gzip)


def check_same(shard: Shard, file: BinaryIO) -> None:
    """Raise a ValueError if an open file is not the shard that was found any more; the message is the reason alone."""
    facts = os.fstat(file.fileno())
    if (facts.st_size, str(facts.st_mtime_ns)) != (shard.num_bytes, shard.version):
        raise ValueError("the shard has changed since it was opened")


def _opened(shard: Shard) -> BinaryIO:
    file = open_regular(shard.place)
    try:
        check_same(shard, file)
    except ValueError:
        file.close()
        raise
    return file


def _index(shard: Shard, cache: ShardCache) -> ShardIndex:
    in_cache = cache.folder / f"{shard.key}{INDEX_SUFFIX}"
    places = [place for place in (shard.index_beside, in_cache) if place is not None]
    limit = _LARGEST_INDEX if shard.is_copied else shard.num_bytes or 0
    found = next((index for place in places if (index := load_index(place, shard.stamp, limit)) is not None), None)
    return found or _new_index(shard, cache, places)


def write_index_beside(path: Path) -> None:
    """Index a plain shard that has just been written.

    Raises:
        OSError: the index cannot be written.
        DataError: the shard cannot be read.
    """
    shard = _local_shard(path, path.name)
    with open_regular(path) as file:
        save_index(_indexed_file(file), Path(f"{path}{INDEX_SUFFIX}"), shard.stamp)


def _indexed_file(file: BinaryIO) -> ShardIndex:
    handle = file.fileno()
    return build_index(lambda offset, size: os.pread(handle, size, offset), os.fstat(handle).st_size)


def _new_index(shard: Shard, cache: ShardCache, places: list[Path]) -> ShardIndex:
    try:
        with open_tar(shard, cache) as file:
            index = _indexed_file(file)
    except (OSError, ValueError) as error:
        where = shown_address(shard.place) if is_address(shard.place) else shard.place
        raise DataError(
            f"{where}: {getattr(error, 'strerror', None) or error}; name shards that can be read"
        ) from error
    for place in places:
        with suppress(OSError):
            if place.parent == cache.folder:
                place.parent.mkdir(parents=True, exist_ok=True)
            save_index(index, place, shard.stamp)
            return index
    logger.warning("%s: its index can be kept nowhere, and is made anew each time", shard.name)
    return index


def _copy_tar(found: BinaryIO, file: BinaryIO, shard: Shard, max_bytes: int) -> None:
    """Copy a tar file to the cache, out of gzip if it is under it; a damaged gzip file ends where it is damaged.

    Raises:
        ValueError: it takes more than the cache or more than it may, or has more bytes than were told.
        ConnectionError: it has fewer.
    """
    counted = _Counted(found, max_bytes, shard.num_bytes)
    start = counted.read(len(_GZIP))
    if start != _GZIP:
        file.write(start)
        while chunk := counted.read(_CHUNK):
            file.write(chunk)
        counted.check_end()
        return
    written = 0
    counted.unread(start)
    with (
        gzip.GzipFile(fileobj=cast("BinaryIO", counted), mode="rb") as unpacked,
        suppress(zlib.error, gzip.BadGzipFile),
    ):
        try:
            while chunk := unpacked.read1(_CHUNK):
                written += len(chunk)
                if written > max_bytes:
                    raise ValueError(f"unpacks to more than {_said(max_bytes)}")
                if written > max(_BOMB_BYTES, _BOMB_RATIO * counted.num_read):
                    raise ValueError(f"unpacks to more than {_BOMB_RATIO} times its size, as no shard of pictures does")
                file.write(chunk)
        except EOFError:
            counted.check_end()


def _said(max_bytes: int) -> str:
    return f"dataset.shard_cache_gib={max_bytes / (1 << 30):g}"


class _Counted:
    """A file that is read once, from its beginning, with a count of the bytes."""

    def __init__(self, file: BinaryIO, most: int, told: int | None) -> None:
        self._file, self._most, self._told, self._start = file, most, told, b""
        self.num_read = 0

    def unread(self, start: bytes) -> None:
        self._start = start

    def read(self, num_bytes: int = _CHUNK) -> bytes:
        if self._start:
            start, self._start = self._start[:num_bytes], self._start[num_bytes:]
            return start
        chunk = self._file.read(num_bytes)
        self.num_read += len(chunk)
        if self.num_read > self._most:
            raise ValueError(f"is larger than {_said(self._most)}")
        if self._told is not None and self.num_read > self._told:
            raise ValueError(f"has more than the {self._told} bytes that were told")
        return chunk

    def check_end(self) -> None:
        """Raise a ConnectionError, which may pass, if there are fewer bytes than were told."""
        if self._told is not None and self.num_read < self._told:
            raise ConnectionError(f"ended after {self.num_read} of {self._told} bytes")
