"""Rows of numbers on disk, by the digest of what they were made of: written once, and read by many processes.

A store is a folder. Each process that writes has two files in it, of which the first is mapped into memory:

- `N.rows`: rows of F numbers of 16 bits, one after the other;
- `N.keys`: for each row its digest, a number of its own, and a checksum.

A row counts once its entry in the second file is whole, and that is written after the row. So whenever a process is
killed, it leaves whole rows, and perhaps a rest that the next one writes over. Files only grow; one training at a time
adds to a store, whose folder it locks, while any number of them read.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from impresa.data.sample import KeptImage
from impresa.data.sources.base import locate
from impresa.errors import DataError
from impresa.files import naming

DIGEST_BYTES = 16
_NUMBER = np.dtype("<f2")
_ENTRY = np.dtype([("digest", f"V{DIGEST_BYTES}"), ("key", "<i8"), ("checksum", "<u4")])


class FeatureStore:
    """The rows that a folder has at the moment. It can be sent to another process.

    Args:
        folder: the store, which may be missing.
        row_length: F.
    """

    def __init__(self, folder: Path, row_length: int) -> None:
        self._row_length = row_length
        counts = {keys: _num_whole(keys, row_length) for keys in sorted(folder.glob("*.keys"))}
        self._parts = [(keys, count) for keys, count in counts.items() if count]
        self._ends = list(accumulate(count for _, count in self._parts))
        self._opened: dict[int, tuple[NDArray[Any], NDArray[np.float16]]] = {}

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @property
    def num_bytes(self) -> int:
        """Size on disk."""
        return len(self) * bytes_per_row(self._row_length)

    def places(self) -> dict[bytes, int]:
        """The place of the row of each digest."""
        raw = b"".join(self._open(part)[0]["digest"].tobytes() for part in range(len(self._parts)))
        return {raw[place * DIGEST_BYTES : (place + 1) * DIGEST_BYTES]: place for place in range(len(self))}

    def __getitem__(self, place: int) -> KeptImage:
        """The row at a place. Raises `ValueError` if it is damaged; the message is the reason alone."""
        part, row = locate(place, self._ends)
        entries, rows = self._open(part)
        if zlib.crc32(rows[row]) != entries[row]["checksum"]:
            files = self._parts[part][0].with_suffix(".*")
            raise ValueError(f"its kept features are damaged; remove {files}, so that they are computed anew")
        return KeptImage(rows[row], int(entries[row]["key"]))

    def _open(self, part: int) -> tuple[NDArray[Any], NDArray[np.float16]]:
        """Entries and rows of one writer, mapped into memory once in each process."""
        if part not in self._opened:
            keys, count = self._parts[part]
            entries = np.memmap(keys, dtype=_ENTRY, mode="r", shape=(count,))
            rows = np.memmap(keys.with_suffix(".rows"), dtype=_NUMBER, mode="r", shape=(count, self._row_length))
            self._opened[part] = entries, rows
        return self._opened[part]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": {}}


def bytes_per_row(row_length: int) -> int:
    """Bytes on disk of a row of so many numbers."""
    return row_length * _NUMBER.itemsize + _ENTRY.itemsize


class Writer:
    """Adds rows to the files of one writer; see `writing`."""

    def __init__(self, rows: BinaryIO, keys: BinaryIO, row_length: int) -> None:
        self._rows, self._keys, self._row_length = rows, keys, row_length

    def add(self, digests: Sequence[bytes], keys: Sequence[int], rows: NDArray[np.float16]) -> None:
        """Add rows (K, F), K digests and numbers; they count when this returns.

        Raises:
            DataError: a number is not finite, so that half precision does not do.
            OSError: the disk is full, for example.
        """
        assert rows.shape == (len(digests), self._row_length)
        if not np.isfinite(rows).all():
            fault = "the frozen tower gives numbers that half precision cannot hold"
            raise DataError(f"dataset.cache_features: {fault}; leave it out")
        entries = np.empty(len(digests), dtype=_ENTRY)
        rows = np.ascontiguousarray(rows, dtype=_NUMBER)
        for entry, digest, key, row in zip(entries, digests, keys, rows, strict=True):
            entry["digest"], entry["key"], entry["checksum"] = np.void(digest), key, zlib.crc32(row)
        for file, content in ((self._rows, rows), (self._keys, entries)):
            file.write(content.tobytes())
            file.flush()


@contextmanager
def writing(folder: Path, name: str, row_length: int) -> Iterator[Writer]:
    """A writer of the files called `name` in a store that nobody else writes to.

    Raises:
        OSError: they cannot be written; it names them.
    """
    keys, rows = folder / f"{name}.keys", folder / f"{name}.rows"
    with naming(rows):
        for path in (keys, rows):
            path.touch()
        whole = _num_whole(keys, row_length)
        os.truncate(keys, whole * _ENTRY.itemsize)
        os.truncate(rows, whole * row_length * _NUMBER.itemsize)
        with rows.open("ab") as row_file, keys.open("ab") as key_file:
            yield Writer(row_file, key_file, row_length)
            for file in (row_file, key_file):
                os.fsync(file.fileno())


def _num_whole(keys: Path, row_length: int) -> int:
    """Number of rows of which both files have all."""
    rows = keys.with_suffix(".rows")
    num_bytes = rows.stat().st_size if rows.exists() else 0
    return min(keys.stat().st_size // _ENTRY.itemsize, num_bytes // (row_length * _NUMBER.itemsize))
