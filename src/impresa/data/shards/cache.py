"""Copies of shards from elsewhere, in a folder of bounded size that all processes of a machine share."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from platformdirs import user_cache_path

from impresa.data.disk import open_regular
from impresa.files import replacing

_TRIES = 5


def cache_folder() -> Path:
    """Where shards, and indexes that cannot lie beside theirs, are kept; `XDG_CACHE_HOME` leads it elsewhere."""
    return user_cache_path("impresa") / "shards"


@dataclass(frozen=True)
class ShardCache:
    """Files by key. The longest unused are removed where a new one needs the room; who has one open can read on."""

    folder: Path
    max_bytes: int

    def opened(self, key: str, num_bytes: int, fill: Callable[[BinaryIO], None]) -> BinaryIO:
        """The file of a key, open for reading; if it is not there, one process fills it while the others wait.

        Args:
            key: tells contents apart.
            num_bytes: what the file may take, as far as it is known.
            fill: writes the file.

        Raises:
            OSError: the folder cannot be written.
        """
        path = self.folder / f"{key}.tar"
        for _ in range(_TRIES):
            with suppress(FileNotFoundError):
                file = open_regular(path)
                with suppress(OSError):  # of another user
                    os.utime(path)
                return file
            self.folder.mkdir(parents=True, exist_ok=True)
            with _locked(self.folder / f"{key}.lock"):
                if path.exists():
                    continue
                for left_behind in self.folder.glob(f".{key}.tar.*.tmp"):  # by a process that was killed
                    left_behind.unlink(missing_ok=True)
                self._make_room(num_bytes)
                with replacing(path) as temporary, temporary.open("wb") as file:
                    fill(file)
                self._make_room(0, kept=path)
        raise OSError(f"{path}: is removed as soon as it is written; raise dataset.shard_cache_gib")

    def _make_room(self, num_bytes: int, kept: Path | None = None) -> None:
        """Remove the longest unused files until so many bytes fit in."""
        found = []
        for path in self.folder.iterdir():
            with suppress(OSError):  # another process has removed it
                if path.suffix in (".tar", ".tmp"):
                    facts = path.stat()
                    found.append((facts.st_mtime, facts.st_size, path))
        total = num_bytes + sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= self.max_bytes:
                return
            if path.suffix == ".tar" and path != kept:
                path.unlink(missing_ok=True)
                total -= size


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the system's lock on a file; where the file system has none, several processes may do the same work."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
