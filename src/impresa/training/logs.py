"""Metrics of a run: its progress on standard error, `metrics.csv`, TensorBoard and Weights & Biases."""

from __future__ import annotations

import csv
import io
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Protocol

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from impresa.config.experiment import ExperimentConfig
from impresa.errors import CheckpointError
from impresa.files import append, write_atomic
from impresa.run_dir.cost import duration
from impresa.run_dir.layout import METRICS
from impresa.run_dir.lock import check_lock
from impresa.training.costs import peak_memory_bytes, uses_gpu
from impresa.training.plan import Plan
from impresa.training.tensorboard import TensorBoardEvents, events_folder
from impresa.training.wandb_run import start_wandb

logger = logging.getLogger(__name__)

FIRST_COLUMNS = ("step", "epoch", "train_loss", "lr", "val_loss")
PACE = ("samples_per_second", "tokens_per_second", "peak_memory_gib", "mfu")
"""Columns that no two runs share: over all processes, tokens being those of texts; memory of this process, of the GPU
if it uses one; `mfu`, the share of the devices' peak that was made use of (model flops utilisation), where that is
known."""
_MOST_DIGITS = 18
"""Of the number of a step."""
SECONDS_BETWEEN_LINES = 30.0
LONG_RUN_S = 1800.0
"""Steps that take longer are announced."""
_TIMED_STEPS, _TIMED_SECONDS = 20, 20.0
"""Steps behind an announcement, or fewer where they take so long."""
SHOWN = {
    "val_loss": "val_loss",
    "val_image_to_text_recall_at_1": "image to text R@1",
    "val_text_to_image_recall_at_1": "text to image R@1",
    "val_perplexity": "perplexity",
    "val_exact_match": "exact match",
    "val_vqa_accuracy": "VQA accuracy",
}
"""Validation metrics that are shown, with their labels; all of them are in `metrics.csv`."""


class MetricLogger(Protocol):
    """A destination of metrics."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write the metrics of a step."""

    def close(self, *, success: bool) -> None:
        """End with the training run."""
        return


class Recorder:
    """Hands metrics to the loggers: training metrics when the plan says so, validation metrics after each validation.

    `train_loss` is the mean over the steps since the last entry; the rest are the values of the step itself.

    Args:
        plan: length and intervals of the run.
        loggers: where metrics go; none in a process that does not write.
        utilisation: gives the share of the devices' peak that a number of samples per second uses, if it is known.
    """

    def __init__(
        self,
        plan: Plan,
        loggers: Sequence[MetricLogger],
        utilisation: Callable[[float], float | None] = lambda _: None,
    ) -> None:
        self.speed = Speedometer()
        self._utilisation = utilisation
        self._plan = plan
        self._loggers = loggers
        self._losses: list[Tensor] = []

    def train(self, step: int, num_samples: int, logs: Mapping[str, Tensor], num_tokens: int = 0) -> None:
        """Record the scalars of optimizer step number `step`, over so many samples, and tokens of their texts."""
        self._losses.append(logs["loss"])
        self.speed.add(num_samples, num_tokens)
        if not self._plan.logs_after(step):
            return
        losses = self.losses()
        self._losses.clear()
        rest = {name: value.item() for name, value in logs.items() if name != "loss"}
        loss = sum(losses) / len(losses)
        self._write(step, {"train_loss": loss, **rest, **self._pace()})

    def validation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record the metrics of the validation after step number `step`."""
        names = sorted(metrics, key=lambda name: (name != "val_loss", name))
        self._write(step, {name: metrics[name] for name in names})

    def losses(self) -> list[float]:
        """Losses of the steps since the last entry; read here and not in each step, which would wait for a GPU."""
        return [loss.item() for loss in self._losses]

    def resume(self, losses: Sequence[float]) -> None:
        """Continue with the losses since the last entry of an earlier part of the run."""
        self._losses = [torch.tensor(loss) for loss in losses]

    def close(self, *, success: bool) -> None:
        """Close the loggers."""
        for destination in self._loggers:
            destination.close(success=success)

    def _pace(self) -> dict[str, float]:
        """Speed and memory, see `PACE`."""
        samples, tokens = self.speed.read()
        found = {"samples_per_second": samples, "tokens_per_second": tokens, "peak_memory_gib": memory_in_gib()}
        share = self._utilisation(samples)
        return found if share is None else {**found, "mfu": share}

    def _write(self, step: int, metrics: Mapping[str, float]) -> None:
        for destination in self._loggers:
            destination.log(step, {"epoch": self._plan.epoch_of(step), **metrics})


class ProgressReport:
    """A progress bar with loss, samples per second, time left and memory; plain lines where there is no terminal.

    Without a terminal a line comes twice a minute at most. Each validation is reported in either case, and once how
    long the run will take, if that is over half an hour. Nothing is `shown` in processes other than the first.
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
        self._first_end: float | None = None
        self._is_announced = False
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
        self._announce_if_long(step)
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=step)
        pause = 0.5 if self._bar is not None else SECONDS_BETWEEN_LINES
        if time.monotonic() - self._last_report < pause or not self._shown:
            return
        self._last_report = time.monotonic()
        note = f"loss {logs['loss'].item():.3f}  {self.speed.read()[0]:.0f} samples/s  {memory_in_use()}"
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], note=note)
        else:
            seconds = (time.monotonic() - self._started) / max(step - self._first_step, 1) * (self._total_steps - step)
            self._print(step, note, f"{timedelta(seconds=round(seconds))} left")

    def _announce_if_long(self, step: int) -> None:
        """Say once how long the steps will take, by the first ones; the very first of them takes longer."""
        if self._is_announced or not self._shown:
            return
        now = time.monotonic()
        if self._first_end is None:
            self._first_end = now
            return
        num_timed, seconds = step - self._first_step - 1, now - self._first_end
        if num_timed < _TIMED_STEPS and seconds < _TIMED_SECONDS:
            return
        self._is_announced, each, num_left = True, seconds / num_timed, self._total_steps - self._first_step
        if each * num_left > LONG_RUN_S:
            logger.warning(
                f"this run will take some {duration(each * num_left)} here, by its first steps ({duration(each)} each, "
                f"{num_left:,} in all); trainer.max_steps, a smaller model or a GPU make it shorter"
            )

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
    """Peak memory of this process, for people."""
    return f"{memory_in_gib():.1f} GiB{' GPU' if uses_gpu() else ''}"


def memory_in_gib() -> float:
    return peak_memory_bytes() / 2**30


class Speedometer:
    """Samples and tokens per second since the last reading, validations left out."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self._samples = self._tokens = 0
        self._since = time.monotonic()

    def add(self, samples: int, tokens: int = 0) -> None:
        self._samples += samples
        self._tokens += tokens

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time that does not count."""
        start = time.monotonic()
        yield
        self._since += time.monotonic() - start

    def read(self) -> tuple[float, float]:
        seconds = max(time.monotonic() - self._since, 1e-9)
        speeds = self._samples / seconds, self._tokens / seconds
        self.restart()
        return speeds


def build_loggers(config: ExperimentConfig, run_dir: Path, step: int) -> list[MetricLogger]:
    """The loggers of a run that continues after optimizer step `step` (0 for a new one)."""
    settings = config.trainer.logging
    loggers: list[MetricLogger] = [MetricsCsv(run_dir / METRICS, step)]
    if settings.tensorboard:
        loggers.append(TensorBoardEvents(events_folder(config, run_dir), step))
    if settings.wandb and (run := start_wandb(config, run_dir)):
        loggers.append(run)
    return loggers


class MetricsCsv(MetricLogger):
    """Writes one line of a CSV file per call of `log`; metrics that it lacks stay empty.

    Every line is appended in one write; a new column rewrites the file under another name and renames it. Lines after
    `step`, left by a run that was cut off, are dropped at once.
    """

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        # What cannot be continued is refused before the first step.
        lines = [line for line in self._lines_so_far() if int(line["step"]) <= step]
        self._columns = list(lines[0]) if lines else []
        if path.exists():
            self._write(lines)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        check_lock(self.path.parent)
        line = {"step": step, **metrics}
        if not line.keys() <= set(self._columns):
            self._add_columns(line)
        append(self.path, _csv(self._columns, [line]))

    def _add_columns(self, line: Mapping[str, object]) -> None:
        lines = self._lines_so_far()
        self._columns = list(dict.fromkeys([*FIRST_COLUMNS, *self._columns, *line]))
        self._write(lines)

    def _write(self, lines: list[dict[str, str]]) -> None:
        header = {name: name for name in self._columns}
        write_atomic(self.path, _csv(self._columns, [header, *lines]))

    def _lines_so_far(self) -> list[dict[str, str]]:
        """The lines of the file; those that a crash has cut off are left out."""
        if not self.path.exists():
            return []
        try:
            with self.path.open(encoding="utf-8", newline="") as file:
                reader = csv.DictReader(file)
                lines, names = list(reader), reader.fieldnames
            if (names and "step" not in names) or any(None in line for line in lines):
                raise ValueError("there are other columns")
            whole = [line for line in lines if None not in line.values()]
            if whole and "\0" in whole[-1]["step"]:
                del whole[-1]  # a block that was never written
            if not all(line["step"].isdecimal() and len(line["step"]) <= _MOST_DIGITS for line in whole):
                raise ValueError("there are no such steps")
            return whole
        except (ValueError, LookupError, csv.Error) as error:
            fault = "holds something else than the metrics of this run; remove it, and they begin anew"
            raise CheckpointError(f"{self.path}: {fault}") from error


def _csv(columns: list[str], lines: Iterable[Mapping[str, object]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    for line in lines:
        writer.writerow({name: f"{value:.7g}" if isinstance(value, float) else value for name, value in line.items()})
    return text.getvalue()
