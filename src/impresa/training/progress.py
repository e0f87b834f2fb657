"""The progress of a training run, on standard error."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Mapping
from datetime import timedelta

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from impresa.training.logs import Speedometer

SECONDS_BETWEEN_LINES = 30.0
SHOWN = {
    "val_loss": "val_loss",
    "val_image_to_text_recall_at_1": "image to text R@1",
    "val_text_to_image_recall_at_1": "text to image R@1",
    "val_perplexity": "perplexity",
    "val_exact_match": "exact match",
}
"""Validation metrics that are shown, with their labels; all of them are in `metrics.csv`."""


class ProgressReport:
    """A progress bar with loss, samples per second, time left and memory; plain lines where there is no terminal.

    Without a terminal a line comes twice a minute at most. Each validation is reported in either case.

    Args:
        total_steps: optimizer steps of the whole run.
        shown: false shows nothing, for processes beside the first.
    """

    def __init__(self, total_steps: int, *, shown: bool = True) -> None:
        self.console = Console(stderr=True)
        self.speed = Speedometer()
        self._total_steps = total_steps
        self._shown = shown
        self._bar: Progress | None = None

    def start(self, step: int) -> None:
        """Begin after step number `step`."""
        self._started = self._last_report = time.monotonic()
        self._first_step = step
        self.speed.restart()
        if not (self.console.is_terminal and self._shown):
            return
        columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(elapsed_when_finished=True))
        self._bar = Progress(TextColumn("training"), *columns, TextColumn("{task.fields[note]}"), console=self.console)
        self._bar.add_task("training", total=self._total_steps, completed=step, note="")
        self._bar.start()

    def train(self, step: int, num_samples: int, logs: Mapping[str, Tensor]) -> None:
        """Report optimizer step number `step`, over so many samples."""
        self.speed.add(num_samples)
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=step)
        pause = 0.5 if self._bar is not None else SECONDS_BETWEEN_LINES
        if time.monotonic() - self._last_report < pause or not self._shown:
            return
        self._last_report = time.monotonic()
        note = f"loss {logs['loss'].item():.3f}  {self.speed.read():.0f} samples/s  {memory_in_use()}"
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], note=note)
        else:
            seconds = (time.monotonic() - self._started) / max(step - self._first_step, 1) * (self._total_steps - step)
            self._print(step, note, f"{timedelta(seconds=round(seconds))} left")

    def validation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Report the validation after step number `step`."""
        if self._shown:
            found = (f"{label} {metrics[name]:.3f}" for name, label in SHOWN.items() if name in metrics)
            self._print(step, *found)

    def stop(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _print(self, step: int, *parts: str) -> None:
        self.console.print(f"step {step}/{self._total_steps}", *parts, sep="  ", highlight=False, soft_wrap=True)


def memory_in_use() -> str:
    """Peak memory of this process: of the GPU if it uses one, else of the machine."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB GPU"
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux kibibytes
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30:.1f} GiB"
