"""Open parquet files of one process, each once: reading a footer takes longer than reading a small row group."""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from impresa.data.disk import open_regular
from impresa.data.sources.rows import found_of

_MOST_OPEN = 64


def open_parquet(file: Path) -> pq.ParquetFile:
    """A file, mapped into memory. Raises what pyarrow raises, and the errors of `open_regular`."""
    open_regular(file).close()
    return pq.ParquetFile(file, memory_map=True, pre_buffer=False)


class ParquetFiles:
    """Files that are opened when they are read from, and anew when they have changed; the longest unused are closed
    beyond 64.

    Nothing is inherited: a process that was forked, or sent this, opens files of its own.
    """

    def __init__(self) -> None:
        self._process = os.getpid()
        self._open: OrderedDict[Path, tuple[tuple[int, int] | None, pq.ParquetFile]] = OrderedDict()

    def __getitem__(self, file: Path) -> pq.ParquetFile:
        """The open file; the errors are those of `open_parquet`."""
        if self._process != os.getpid():
            self._open, self._process = OrderedDict(), os.getpid()
        facts = found_of(file)
        if self._open.get(file, (None, None))[0] != facts or facts is None:
            self._open.pop(file, None)
            self._open[file] = facts, open_parquet(file)
            if len(self._open) > _MOST_OPEN:
                self._open.popitem(last=False)
        self._open.move_to_end(file)
        return self._open[file][1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}
