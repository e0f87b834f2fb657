"""What a run writes down: training and validation metrics, under the step they belong to."""

from __future__ import annotations

import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from impresa.tasks.alignment.batch import Batch
from impresa.training.module import TrainingModule


class Recorder(Callback):
    """Hands metrics to the loggers: training metrics when the plan says so, validation metrics after each validation.

    `train_loss` is the mean over the steps since the last entry; the rest are the values of the step itself.
    """

    def __init__(self) -> None:
        self._losses: list[float] = []
        self.speed = Speedometer()

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: list[Batch], batch_idx: int
    ) -> None:
        assert isinstance(module, TrainingModule)
        self._losses.append(float(outputs["loss"]))
        self.speed.add(sum(map(len, batch)) * trainer.world_size)
        if not module.plan.logs_after(module.step):
            return
        loss = sum(self._losses) / len(self._losses)
        self._losses.clear()
        rest = {name: float(value) for name, value in outputs.items() if name != "loss"}
        _write(trainer, module, {"train_loss": loss, **rest, "samples_per_second": self.speed.read()})

    def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
        self.speed.pause()

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        assert isinstance(module, TrainingModule)
        self.speed.resume()
        if not trainer.sanity_checking:
            _write(trainer, module, validation_metrics(trainer))

    def state_dict(self) -> dict[str, Any]:
        return {"losses": list(self._losses)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._losses = list(state_dict["losses"])


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

    def read(self) -> float:
        """The speed; starts a new stretch."""
        self.pause()
        speed = self._samples / max(self._seconds, 1e-9)
        self._samples, self._seconds = 0, 0.0
        self.resume()
        return speed


def validation_metrics(trainer: Trainer) -> dict[str, float]:
    """What the last validation measured, `val_loss` first."""
    metrics: dict[str, Tensor] = trainer.callback_metrics
    names = sorted((name for name in metrics if name.startswith("val_")), key=lambda name: (name != "val_loss", name))
    return {name: float(metrics[name]) for name in names}


def _write(trainer: Trainer, module: TrainingModule, metrics: dict[str, float]) -> None:
    metrics = {"epoch": module.plan.epoch_of(module.step), **metrics}
    for logger in trainer.loggers:
        logger.log_metrics(metrics, step=module.step)
