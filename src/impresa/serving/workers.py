"""Several processes behind one socket, each with the model; one that dies is replaced."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from multiprocessing import connection
from multiprocessing.context import SpawnProcess
from multiprocessing.synchronize import Event
from typing import Any

from impresa.errors import USER_ERROR, ImpresaError, TrainingError
from impresa.foreign_text import printable
from impresa.serving.metrics import SHARED
from impresa.serving.settings import Settings

_POLL_S = 0.2
_END_S = 15.0
"""Workers have so long to end."""
_MOST_DEATHS = 3
"""Of workers that have not come to answer anything, in a row, before they are given up."""
_SPAWN = multiprocessing.get_context("spawn")

Serve = Callable[[Settings, socket.socket, Callable[[], object]], None]


class _Worker:
    """A process that serves."""

    def __init__(self, serve: Serve, settings: Settings, listening: socket.socket, num_threads: int) -> None:
        self.ready: Event = _SPAWN.Event()
        arguments = serve, settings, listening, self.ready, num_threads
        self.process: SpawnProcess = _SPAWN.Process(target=_work, args=arguments, daemon=True)
        self.process.start()


def supervise(
    serve: Serve, settings: Settings, listening: socket.socket, number: int, tell: Callable[[], object]
) -> None:
    """Keep so many workers alive until a signal ends it all.

    Args:
        serve: what each does; it calls its last argument once it answers.
        settings: for it.
        listening: the socket that they share.
        number: of workers.
        tell: called once all of them answer.

    Raises:
        TrainingError: workers die before they answer anything.
    """
    threads = max(1, len(os.sched_getaffinity(0)) // number) if hasattr(os, "sched_getaffinity") else 1
    with tempfile.TemporaryDirectory(prefix="impresa-serve-") as folder:
        os.environ[SHARED] = folder
        workers = [_Worker(serve, settings, listening, threads) for _ in range(number)]
        try:
            _watch(workers, lambda: _Worker(serve, settings, listening, threads), tell)
        finally:
            _end(workers)


def _watch(workers: list[_Worker], start: Callable[[], _Worker], tell: Callable[[], object]) -> None:
    """Replace workers that die; ends with an error alone."""
    from prometheus_client.multiprocess import mark_process_dead

    has_told, num_deaths = False, 0
    while True:
        connection.wait([worker.process.sentinel for worker in workers], timeout=_POLL_S)
        for place, worker in enumerate(workers):
            if worker.process.is_alive():
                continue
            worker.process.join()
            if worker.process.exitcode == USER_ERROR:
                sys.exit(USER_ERROR)  # it has said why
            num_deaths = 0 if worker.ready.is_set() else num_deaths + 1
            if num_deaths >= _MOST_DEATHS:
                raise TrainingError(
                    "workers: they die before they answer anything; try --workers 1, or a smaller model"
                )
            mark_process_dead(worker.process.pid)
            print(f"worker {worker.process.pid} has ended and is replaced", file=sys.stderr)  # noqa: T201
            workers[place] = start()
        if not has_told and all(worker.ready.is_set() for worker in workers):
            has_told = True
            tell()


def _end(workers: list[_Worker]) -> None:
    """End all, and kill those that take too long."""
    for worker in workers:
        worker.process.terminate()
    until = time.monotonic() + _END_S
    for worker in workers:
        worker.process.join(max(until - time.monotonic(), 0.1))
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()


def _work(serve: Serve, settings: Settings, listening: socket.socket, ready: Event, num_threads: int) -> None:
    """The life of a worker."""
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the first process ends the others
    torch.set_num_threads(num_threads)
    parent: Any = multiprocessing.parent_process()
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    try:
        serve(settings, listening, ready.set)
    except ImpresaError as error:
        print(*map(printable, error.lines), sep="\n", file=sys.stderr)  # noqa: T201
        sys.exit(USER_ERROR)


def _end_with(parent: Any) -> None:
    """End this process when the first one has ended, however it came about."""
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
