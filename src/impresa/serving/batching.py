"""Inputs of several requests, computed together and handed back each to its own."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from impresa.serving.engine import Engine
from impresa.serving.metrics import Metrics
from impresa.serving.progress import PROGRESS, Progress
from impresa.serving.settings import Limits

logger = logging.getLogger(__name__)

Compute = Callable[[list[Any]], Iterable[Any]]
"""The outputs of a list of inputs, in order."""


@dataclass(eq=False)
class _Entry:
    """An input that waits."""

    item: Any
    answer: asyncio.Future[Any]
    progress: Progress
    since: float = field(default_factory=time.monotonic)


class Batcher:
    """Batches of one modality.

    A batch is put together when the model's thread comes to it, of all that waits by then; one that is not full waits
    for more first, at most `max_wait_ms`.

    Args:
        name: the modality, for the counts.
        compute: the outputs of a list of inputs, in order; called in the model's thread.
        engine: has that thread.
        limits: `batch_size` and `max_wait_ms`.
        metrics: where the sizes of batches are told.
    """

    def __init__(self, name: str, compute: Compute, engine: Engine, limits: Limits, metrics: Metrics) -> None:
        self._compute, self._engine, self._limits = compute, engine, limits
        self._sizes = metrics.batches.labels(name)
        self._waiting: deque[_Entry] = deque()
        self._more = asyncio.Event()

    async def results(self, items: Sequence[Any]) -> list[Any]:
        """The outputs of a request's inputs; a request that is cancelled takes those back that have not begun."""
        loop, progress = asyncio.get_running_loop(), PROGRESS.get() or Progress()
        entries = [_Entry(item, loop.create_future(), progress) for item in items]
        self._waiting += entries
        self._more.set()
        try:
            return [await entry.answer for entry in entries]
        finally:
            for entry in entries:
                entry.answer.cancel()

    async def run(self) -> None:
        """Form batches until this is cancelled."""
        loop, begun = asyncio.get_running_loop(), asyncio.Event()

        def job() -> None:
            batch = self._take()
            loop.call_soon_threadsafe(begun.set)
            outputs = _computed(self._compute, [entry.item for entry in batch])
            loop.call_soon_threadsafe(_deliver, batch, outputs)

        while True:
            await self._filled()
            begun.clear()
            self._engine.queue(job)
            await begun.wait()

    async def _filled(self) -> None:
        """Wait until there is a full batch, or one that has waited long enough."""
        while not self._waiting:
            self._more.clear()
            await self._more.wait()
        until = self._waiting[0].since + self._limits.max_wait_ms / 1000
        while len(self._waiting) < self._limits.batch_size and (left := until - time.monotonic()) > 0:
            self._more.clear()
            try:
                async with asyncio.timeout(left):
                    await self._more.wait()
            except TimeoutError:
                return

    def _take(self) -> list[_Entry]:
        batch: list[_Entry] = []
        while self._waiting and len(batch) < self._limits.batch_size:
            entry = self._waiting.popleft()
            if not entry.answer.done():  # nobody waits for a cancelled one
                entry.progress.begun = True
                batch.append(entry)
        self._sizes.observe(len(batch))
        return batch


def _computed(compute: Compute, items: list[Any]) -> list[Any]:
    """The outputs; where a batch fails its inputs are computed one by one, and an exception stands for the bad ones."""
    if not items:
        return []
    try:
        return list(compute(items))
    except Exception as error:
        logger.exception("a batch of %d has failed", len(items))
        if len(items) == 1:
            return [error]
        return [output for item in items for output in _computed(compute, [item])]


def _deliver(batch: list[_Entry], outputs: list[Any]) -> None:
    for entry, output in zip(batch, outputs, strict=True):
        if entry.answer.done():
            continue
        if isinstance(output, Exception):
            entry.answer.set_exception(output)
        else:
            entry.answer.set_result(output)
