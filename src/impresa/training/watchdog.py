"""The watchdog of a training process: ends it when it makes no step for too long, and prints where it stands."""

from __future__ import annotations

import faulthandler
import os
import threading
import time
from typing import Self

from impresa.training.processes import STUCK, this_process

STDERR = 2
GRACE_S = 5.0
"""Before the process ends, so that the others, which wait for the one that is stuck, print where they stand, too."""
TICK_S = 1.0
"""The longest wait between two looks at the steps."""


class Watchdog:
    """While it is entered, `beat` must come at least every so many minutes; else each thread's stack is printed to
    standard error, and the process ends with the exit code `STUCK`. The processes of a group wait for each other, so
    all of them end.

    A thread of Python does it, by counting short waits: a process that is suspended (ctrl-z, SIGSTOP as SLURM sends it)
    is not stuck. Where some library keeps Python from running, a thread of faulthandler's does it, which knows the time
    alone; so it prints and ends nothing where no other process waits for this one.
    """

    def __init__(self, minutes: float) -> None:
        self._patience_s = minutes * 60
        self._step = self._num_beats = 0
        self._is_over = threading.Event()

    def __enter__(self) -> Self:
        self.beat(0)
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        faulthandler.cancel_dump_traceback_later()

    def beat(self, step: int | None = None) -> None:
        """Something was done: optimizer step number `step`, or a batch of a validation."""
        self._num_beats += 1
        self._step = self._step if step is None else step
        are_others = this_process().world_size > 1
        faulthandler.dump_traceback_later(self._patience_s + 2 * GRACE_S, exit=are_others, file=STDERR)

    def _watch(self) -> None:
        wait_s = min(TICK_S, self._patience_s / 10)
        waited_s, num_beats = 0.0, self._num_beats
        while waited_s < self._patience_s:
            if self._is_over.wait(wait_s):
                return
            waited_s = waited_s + wait_s if num_beats == self._num_beats else 0.0
            num_beats = self._num_beats
        minutes = f"{self._patience_s / 60:g} minutes"
        say = f"process {this_process().rank}: no step for {minutes} after step {self._step}; it stands here:\n"
        os.write(STDERR, say.encode())
        faulthandler.dump_traceback(file=STDERR, all_threads=True)
        time.sleep(GRACE_S)
        os._exit(STUCK)
