"""Ctrl-C during a training run: finish the step, save, leave."""

from __future__ import annotations

import logging
import os
import signal
import threading
from types import FrameType
from typing import Self

from impresa.training.processes import LAUNCHED

logger = logging.getLogger(__name__)


class TrainingInterrupted(BaseException):
    """The user stopped the run; like `KeyboardInterrupt` not an `Exception`, so that nothing swallows it."""


class GracefulStop:
    """While it is entered, the first SIGINT or SIGTERM sets `requested`; a second one ends the run at once.

    In a process that our launcher has started, SIGTERM means that another has died: it ends at once.
    """

    def __init__(self) -> None:
        self.requested = False
        self._process = os.getpid()
        self._before: dict[int, object] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers only there
            for number in (signal.SIGINT,) if LAUNCHED in os.environ else (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a forked data worker: Ctrl-C reaches it too, but the main process decides
            if number == signal.SIGTERM:
                os._exit(128 + number)
            return
        if self.requested:
            raise TrainingInterrupted
        self.requested = True
        logger.warning("stopping after this step, and its validation if one is due; once more to stop at once")
