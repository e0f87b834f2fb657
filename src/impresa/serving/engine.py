"""The threads behind the event loop: one for the model, some that decode, and a bound on what waits for them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from impresa.serving.faults import ApiError, bad
from impresa.serving.metrics import Metrics

T = TypeVar("T")


class Engine:
    """Threads that work while the event loop answers.

    Args:
        num_readers: threads that decode pictures and sounds.
    """

    def __init__(self, num_readers: int) -> None:
        self._model = ThreadPoolExecutor(1, "model")
        self._readers = ThreadPoolExecutor(num_readers, "reader")

    def queue(self, work: Callable[[], object]) -> None:
        """Let the model's thread do something, after all that it has been given before."""
        self._model.submit(work)

    async def compute(self, work: Callable[..., T], *args: object) -> T:
        """The result of the model's thread; what is cancelled before it begins is left out."""
        return await asyncio.get_running_loop().run_in_executor(self._model, work, *args)

    async def read(self, work: Callable[..., T], *args: object) -> T:
        """The result of a thread that decodes."""
        return await asyncio.get_running_loop().run_in_executor(self._readers, work, *args)

    def close(self) -> None:
        """Leave out what has not begun."""
        for threads in (self._model, self._readers):
            threads.shutdown(wait=False, cancel_futures=True)


class Room:
    """Room for the inputs of all requests.

    Args:
        size: inputs at once.
        metrics: where their number is told.
    """

    def __init__(self, size: int, metrics: Metrics) -> None:
        self._size, self._taken, self._metrics = size, 0, metrics

    @contextmanager
    def taken(self, number: int) -> Iterator[None]:
        """Hold room for so many inputs, from before they are decoded until they are answered.

        Raises:
            ApiError: there is none at the moment (429), or never will be (400).
        """
        if number > self._size:
            raise bad(f"{number} inputs are more than this server holds at once, {self._size}; send fewer at a time")
        if self._taken + number > self._size:
            raise ApiError(429, "too many inputs wait; come back in a moment", code="rate_limit_exceeded")
        self._add(number)
        try:
            yield
        finally:
            self._add(-number)

    def _add(self, number: int) -> None:
        self._taken += number
        self._metrics.waiting.set(self._taken)
