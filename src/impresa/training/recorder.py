"""What a run writes down: training and validation metrics, under the step they belong to."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from impresa.training.loggers import MetricLogger
from impresa.training.plan import Plan


class Recorder:
    """Hands metrics to the loggers: training metrics when the plan says so, validation metrics after each validation.

    `train_loss` is the mean over the steps since the last entry; the rest are the values of the step itself.

    Args:
        plan: length and intervals of the run.
        loggers: where metrics go; none in a process that does not write.
    """

    def __init__(self, plan: Plan, loggers: Sequence[MetricLogger]) -> None:
        self.speed = Speedometer()
        self._plan = plan
        self._loggers = loggers
        self._losses: list[Tensor] = []

    def train(self, step: int, num_samples: int, logs: Mapping[str, Tensor]) -> None:
        """Take up what optimizer step number `step` gave for so many samples."""
        self._losses.append(logs["loss"])
        self.speed.add(num_samples)
        if not self._plan.logs_after(step):
            return
        losses = self.losses()
        self._losses.clear()
        rest = {name: value.item() for name, value in logs.items() if name != "loss"}
        loss = sum(losses) / len(losses)
        self._write(step, {"train_loss": loss, **rest, "samples_per_second": self.speed.read()})

    def validation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take up the metrics of the validation after step number `step`."""
        names = sorted(metrics, key=lambda name: (name != "val_loss", name))
        self._write(step, {name: metrics[name] for name in names})

    def losses(self) -> list[float]:
        """Losses of the steps since the last entry; read here and not in each step, which would wait for a GPU."""
        return [loss.item() for loss in self._losses]

    def resume(self, losses: Sequence[float]) -> None:
        """Go on with the losses since the last entry of an earlier part of the run."""
        self._losses = [torch.tensor(loss) for loss in losses]

    def close(self, *, success: bool) -> None:
        """The training run is over."""
        for logger in self._loggers:
            logger.close(success=success)

    def _write(self, step: int, metrics: Mapping[str, float]) -> None:
        for logger in self._loggers:
            logger.log(step, {"epoch": self._plan.epoch_of(step), **metrics})


class Speedometer:
    """Samples per second since the last reading, validations left out."""

    def __init__(self) -> None:
        self._samples = 0
        self._seconds = 0.0
        self._since = time.monotonic()

    def add(self, samples: int) -> None:
        self._samples += samples

    def pause(self) -> None:
        self._seconds += time.monotonic() - self._since

    def resume(self) -> None:
        self._since = time.monotonic()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time that does not count."""
        self.pause()
        try:
            yield
        finally:
            self.resume()

    def read(self) -> float:
        """The speed; starts a new stretch."""
        self.pause()
        speed = self._samples / max(self._seconds, 1e-9)
        self._samples, self._seconds = 0, 0.0
        self.resume()
        return speed
