"""Writing tar shards as the webdataset package lays them out, each with the index that training reads it by."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple, Self

from impresa.data.shards.index import KEY, META
from impresa.data.shards.places import write_index_beside
from impresa.data.shards.tar import BLOCK
from impresa.files import naming

_END = bytes(2 * BLOCK)
"""Mark of the end of an archive."""
_LONGEST_KEY = 1 << 10


class Placed(NamedTuple):
    """A sample's place: the name of its shard, the offset of its first header there, and its bytes with all headers."""

    shard: str
    offset: int
    num_bytes: int


class ShardWriter:
    """Shards `00000.tar`, `00001.tar` and so on in a folder, each with its index beside it.

    A shard takes its name when it is whole; until then it is a hidden file (`part_of`), which readers of shards leave
    out. What `add` has returned of is in that file even if the process is killed, so who has noted the places can go
    on behind the last one. Equal samples make equal bytes: members have no time and no owner.

    Args:
        folder: must be there.
        max_bytes: of a shard, which is larger only if a single sample is.
        first: number of the first shard.
        kept_bytes: continue the hidden file of that number behind so many bytes; what follows there is cut off.

    Raises:
        OSError: a file cannot be written; it names the shard.
        ValueError: the hidden file has fewer than `kept_bytes`.
    """

    def __init__(self, folder: Path, max_bytes: int, *, first: int = 0, kept_bytes: int = 0) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._number = first
        self._kept_bytes = kept_bytes
        self._size = 0
        self._file: BinaryIO | None = None
        self._last_key: str | None = None
        self.finished: list[str] = []
        """Names of the shards that are whole, of those that this object has written."""
        if kept_bytes:
            self._open()

    @property
    def number(self) -> int:
        """Of the shard that the next sample goes to; those before it are whole."""
        return self._number

    def add(self, key: str, files: Mapping[str, bytes]) -> Placed:
        """Write a sample.

        Args:
            key: name of the sample in its shard, with slashes for folders, and no dot in its last part.
            files: contents by what follows the name and a dot: `jpg`, `txt`, `json`, `left.jpg`.

        Raises:
            ValueError: the key or the name of a file is none that readers take for one sample, or the key is that of
                the sample before; the message is the reason alone.
        """
        content = _archived(key, files)
        if key == self._last_key:
            raise ValueError(f"{key!r} is the name of the sample before")
        if self._size and self._size + len(content) + len(_END) > self._max_bytes:
            self._finish()
        name, offset = shard_name(self._number), self._size
        with naming(self._folder / name):
            self._write(self._file or self._open(), content)
        self._size += len(content)
        self._last_key = key
        return Placed(name, offset, len(content))

    def sync(self) -> None:
        """Put what was added on the disk, where it outlives a loss of power too."""
        if self._file is not None:
            with naming(self._folder / shard_name(self._number)):
                os.fsync(self._file.fileno())

    def close(self) -> None:
        """Finish the last shard."""
        if self._file is not None:
            self._finish()

    def abandon(self) -> None:
        """Leave the unfinished shard as the hidden file that it is."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.abandon()

    def _open(self) -> BinaryIO:
        path = part_of(self._folder, self._number)
        with naming(path):
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
            file: BinaryIO = os.fdopen(handle, "r+b", buffering=0)
            if os.fstat(handle).st_size < self._kept_bytes:
                file.close()
                raise ValueError(f"{path} has fewer than {self._kept_bytes} bytes")
            file.truncate(self._kept_bytes)
        self._size, self._kept_bytes, self._file = self._kept_bytes, 0, file
        return file

    def _finish(self) -> None:
        assert self._file is not None
        name = shard_name(self._number)
        path = self._folder / name
        with naming(path):
            self._write(self._file, _END)
            os.fsync(self._file.fileno())
            self._file.close()
            os.replace(part_of(self._folder, self._number), path)
        write_index_beside(path)
        self.finished.append(name)
        self._file, self._last_key, self._size = None, None, 0
        self._number += 1

    def _write(self, file: BinaryIO, content: bytes) -> None:
        left, offset = memoryview(content), self._size
        while left:
            written = os.pwrite(file.fileno(), left, offset)
            left, offset = left[written:], offset + written


def shard_name(number: int) -> str:
    return f"{number:05d}.tar"


def part_of(folder: Path, number: int) -> Path:
    """The hidden file that a shard is until it is whole."""
    return folder / f".{shard_name(number)}.part"


def _archived(key: str, files: Mapping[str, bytes]) -> bytes:
    """The members of a sample as they lie in an archive."""
    leads_off = key.startswith("/") or any(part.startswith(".") for part in key.split("/"))
    if leads_off or META.match(key) or len(key) > _LONGEST_KEY or "\0" in key or not files:
        raise ValueError(f"{key[:60]!r} cannot be the name of a sample")
    pieces = []
    for extension, content in files.items():
        found = KEY.fullmatch(f"{key}.{extension}")
        if found is None or found[1] != key or extension != extension.lower() or "\0" in extension:
            raise ValueError(f"{key!r} and {extension!r} are no names of a sample and of one of its files")
        member = tarfile.TarInfo(f"{key}.{extension}")
        member.size = len(content)
        padding = bytes(-len(content) % BLOCK)
        pieces += [member.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape"), content, padding]
    return b"".join(pieces)
