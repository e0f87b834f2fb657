"""This process among those that train together: its rank, notices, stop and end. Needs no torch."""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import Any, Self

from impresa.errors import ConfigError, Requeue
from impresa.foreign_text import printable

logger = logging.getLogger(__name__)

LAUNCHED = "IMPRESA_LAUNCHED"
"""Environment variable of a process that `launch` has started."""
ALONE_IN_SLURM = ("bash", "interactive")
"""Job names of shells on a SLURM node: a command typed there is one process, whatever SLURM_NTASKS says."""


@dataclass(frozen=True)
class Process:
    """One process among those that train together."""

    rank: int = 0
    local_rank: int = 0
    """Number of the process on its machine."""
    world_size: int = 1
    local_world_size: int = 1
    """Number of processes on each machine."""


def this_process() -> Process:
    """This process, as torchrun, SLURM or our own launcher describes it; without any of them it is alone."""
    env = os.environ
    if "RANK" in env and "WORLD_SIZE" in env:
        world = int(env["WORLD_SIZE"])
        return Process(
            int(env["RANK"]), int(env.get("LOCAL_RANK", "0")), world, int(env.get("LOCAL_WORLD_SIZE", world))
        )
    if "SLURM_PROCID" in env and env.get("SLURM_JOB_NAME") not in ALONE_IN_SLURM:
        world = int(env.get("SLURM_NTASKS", 1))
        nodes = int(env.get("SLURM_JOB_NUM_NODES", env.get("SLURM_NNODES", 1)))
        return Process(int(env["SLURM_PROCID"]), int(env.get("SLURM_LOCALID", 0)), world, world // nodes)
    return Process()


def set_rendezvous(process: Process) -> None:
    """Tell torch where the processes of a SLURM job meet, unless the user or torchrun has set that already."""
    os.environ.setdefault("MASTER_ADDR", _first_host(os.environ.get("SLURM_NODELIST", "127.0.0.1")))
    os.environ.setdefault("MASTER_PORT", str(15_000 + int(os.environ.get("SLURM_JOB_ID", "0")) % 20_000))
    os.environ.update(RANK=f"{process.rank}", WORLD_SIZE=f"{process.world_size}", LOCAL_RANK=f"{process.local_rank}")


def is_main_process() -> bool:
    """True in the first process of a training run, or its only one."""
    return this_process().rank == 0


def check_shared_folder(named: bool) -> None:
    """Raise a `ConfigError` where several processes have no named run directory: each would choose its own."""
    if this_process().world_size > 1 and not named:
        raise ConfigError("--output-dir: several processes were started at once; name one folder for all of them")


def show_notices() -> None:
    """Show what the library logs as plain lines on standard error; once, and in one of several processes."""
    library = logging.getLogger("impresa")
    if any(isinstance(handler, _StderrHandler) for handler in library.handlers):
        return
    library.addHandler(_StderrHandler())
    library.setLevel(logging.INFO if is_main_process() else logging.ERROR)


def end_process(code: int = 0) -> int:
    """The exit code of a training run that went well, or that a scheduler has stopped.

    One process of several ends at once: all is written, and destroying the process group at exit crashes now and then,
    which a launcher would take for a failed run.
    """
    if this_process().world_size > 1:
        leave(code)
    return code


def leave(code: int) -> None:
    """End this process without waiting for its threads."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


STUCK = 70
"""Exit code of a process that has made no step for too long."""
BY_SCHEDULER = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""Signals of a scheduler that wants the machine back: SLURM's, its warning (`--signal=USR1@120`), and submitit's."""


class TrainingInterrupted(BaseException):
    """The user, or a scheduler, stopped the run; like `KeyboardInterrupt` not an `Exception`, so that nothing swallows
    it."""


@contextmanager
def scheduler_may_stop() -> Iterator[None]:
    """While it is entered, a scheduler's signal raises `Requeue` at once: what there is to save is saved already."""
    before, process = {}, os.getpid()

    def stop(number: int, frame: FrameType | None) -> None:
        if os.getpid() != process:  # a forked data worker
            os._exit(128 + number)
        raise Requeue

    if can_handle_signals():
        before = {number: signal.signal(number, stop) for number in _handled(BY_SCHEDULER)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _handled(numbers: Iterable[int]) -> list[int]:
    """Those that this process answers: a launcher of ours ends its processes by SIGTERM when one of them has died."""
    return [number for number in numbers if not (number == signal.SIGTERM and LAUNCHED in os.environ)]


class GracefulStop:
    """While it is entered, the first SIGINT, or signal of a scheduler, sets `requested`. A second SIGINT or SIGTERM
    ends the run at once; warnings may come as often as they like, and SIGTERM after one.

    In a process that our launcher has started, SIGTERM means that another has died: it ends at once.

    Args:
        notice: the line that answers the first signal.
    """

    def __init__(
        self, notice: str = "stopping after this step, and its validation if one is due; once more to stop at once"
    ) -> None:
        self.requested = False
        self.is_of_scheduler = False
        """True where a signal came that is none of the user's."""
        self._received: set[int] = set()
        self._notice = notice
        self._process = os.getpid()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if can_handle_signals():
            for number in _handled((signal.SIGINT, *BY_SCHEDULER)):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a forked data worker: Ctrl-C reaches it too, but the main process decides
            if number == signal.SIGTERM:
                os._exit(128 + number)
            return
        if number in self._received and number in (signal.SIGINT, signal.SIGTERM):
            raise TrainingInterrupted
        self._received.add(number)
        self.is_of_scheduler |= number in BY_SCHEDULER
        if not self.requested:
            self.requested = True
            logger.warning(self._notice)


def can_handle_signals() -> bool:
    """True in the main thread: Python allows signal handlers only there."""
    return threading.current_thread() is threading.main_thread()


def _first_host(nodes: str) -> str:
    """The first host of SLURM's list of nodes, such as `node[003-007,12],other`."""
    found = re.match(r"([^\[,\s]+)(?:\[(\w+))?", nodes)
    return nodes if found is None else found[1] + (found[2] or "")


class _StderrHandler(logging.Handler):
    """Writes to the current standard error, which a progress bar replaces while it is shown."""

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError, ValueError):  # whoever read it may have left
            text = printable(self.format(record), lines=record.exc_info is not None)
            print(text, file=sys.stderr, flush=True)  # noqa: T201
