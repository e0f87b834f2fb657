"""What a user sees of a running training, on standard error."""

from __future__ import annotations

import resource
import sys
import time
from datetime import timedelta
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from impresa.tasks.alignment.batch import Batch
from impresa.training.module import TrainingModule
from impresa.training.recorder import Speedometer, validation_metrics

SECONDS_BETWEEN_LINES = 30.0
SHOWN = {
    "val_loss": "val_loss",
    "val_image_to_text_recall_at_1": "image to text R@1",
    "val_text_to_image_recall_at_1": "text to image R@1",
    "val_perplexity": "perplexity",
    "val_exact_match": "exact match",
}
"""Validation metrics that are shown, and as what; all of them are in `metrics.csv`."""


class ProgressReport(Callback):
    """A progress bar with loss, samples per second, time left and memory; plain lines where there is no terminal.

    Without a terminal a line comes twice a minute at most. Each validation is reported in either case.
    """

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        self._bar: Progress | None = None
        self._speed = Speedometer()
        self._started = self._last_report = time.monotonic()
        self._first_step = 0

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        assert isinstance(module, TrainingModule)
        self._started = self._last_report = time.monotonic()
        self._first_step = module.step
        self._speed.resume()
        if not (self.console.is_terminal and trainer.is_global_zero):
            return
        columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(elapsed_when_finished=True))
        self._bar = Progress(TextColumn("training"), *columns, TextColumn("{task.fields[note]}"), console=self.console)
        self._bar.add_task("training", total=module.plan.total_steps, completed=module.step, note="")
        self._bar.start()

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: list[Batch], batch_idx: int
    ) -> None:
        assert isinstance(module, TrainingModule)
        self._speed.add(sum(map(len, batch)) * trainer.world_size)
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=module.step)
        pause = 0.5 if self._bar is not None else SECONDS_BETWEEN_LINES
        if time.monotonic() - self._last_report < pause or not trainer.is_global_zero:
            return
        self._last_report = time.monotonic()
        note = f"loss {float(outputs['loss']):.3f}  {self._speed.read():.0f} samples/s  {memory_in_use()}"
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], note=note)
        else:
            self._say(f"{_place(module)}  {note}  {self._time_left(module)} left")

    def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._speed.pause()

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        assert isinstance(module, TrainingModule)
        self._speed.resume()
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        metrics = validation_metrics(trainer)
        found = (f"{label} {metrics[name]:.3f}" for name, label in SHOWN.items() if name in metrics)
        self._say("  ".join((_place(module), *found)))

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._stop()

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _say(self, line: str) -> None:
        if self._bar is not None:
            self._bar.console.print(line, highlight=False, soft_wrap=True)
        else:
            print(line, file=sys.stderr, flush=True)  # noqa: T201

    def _time_left(self, module: TrainingModule) -> timedelta:
        done = module.step - self._first_step
        seconds = (time.monotonic() - self._started) / max(done, 1) * (module.plan.total_steps - module.step)
        return timedelta(seconds=round(seconds))


def memory_in_use() -> str:
    """The most memory that this process has held so far: of the GPU if it uses one, else of the machine."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB GPU"
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux kibibytes
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30:.1f} GiB"


def _place(module: TrainingModule) -> str:
    return f"step {module.step}/{module.plan.total_steps}"
