"""Open shards of one process, each once, and reading from any place in them."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, BinaryIO

from impresa.data.shards.cache import ShardCache
from impresa.data.shards.places import Shard, check_same, open_tar

_MOST_OPEN = 256
"""A quarter of the files that a process may have open by default."""
_MOST_BETWEEN = 1 << 14
"""Bytes of headers and of other files that are read along."""


class Handles:
    """Shards that are opened when they are read from; the longest unused are closed beyond 256.

    Nothing is inherited: a process that was forked, or sent this, opens shards of its own.
    """

    def __init__(self, cache: ShardCache) -> None:
        self._cache = cache
        self._process = os.getpid()
        self._open: OrderedDict[str, BinaryIO] = OrderedDict()

    def read(self, shard: Shard, places: Sequence[tuple[int, int]]) -> list[bytes]:
        """The contents at some offsets of a shard, each of some length; those that lie together are read in one go.

        Raises:
            OSError: the shard cannot be read.
            ValueError: it has changed; the message is the reason alone.
        """
        start = min(offset for offset, _ in places)
        end = max(offset + length for offset, length in places)
        if end - start > sum(length for _, length in places) + _MOST_BETWEEN:
            return [self._read(shard, offset, length) for offset, length in places]
        whole = self._read(shard, start, end - start)
        return [whole[offset - start : offset - start + length] for offset, length in places]

    def _read(self, shard: Shard, offset: int, length: int) -> bytes:
        handle = self._handle(shard).fileno()
        content = os.pread(handle, length, offset)
        while len(content) < length and (more := os.pread(handle, length - len(content), offset + len(content))):
            content += more
        if len(content) < length:
            raise ValueError("the shard has become shorter")
        return content

    def _handle(self, shard: Shard) -> BinaryIO:
        if self._process != os.getpid():
            self._close()
            self._process = os.getpid()
        if shard.place not in self._open:
            self._open[shard.place] = open_tar(shard, self._cache)
            if len(self._open) > _MOST_OPEN:
                self._open.popitem(last=False)[1].close()
        elif not shard.is_copied:
            check_same(shard, self._open[shard.place])  # others may write into a file that is open here
        self._open.move_to_end(shard.place)
        return self._open[shard.place]

    def _close(self) -> None:
        while self._open:
            self._open.popitem()[1].close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}

    def __del__(self) -> None:
        self._close()
