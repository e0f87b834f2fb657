"""Which checkpoints a run keeps, and how one is found and read again."""

from __future__ import annotations

import math
import os
import shutil
import string
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from impresa.config.experiment import CheckpointConfig
from impresa.errors import CheckpointError, ConfigError
from impresa.run_dir.layout import LAST_CHECKPOINT as LAST
from impresa.training.interrupt import GracefulStop, TrainingInterrupted
from impresa.training.module import TrainingModule

SUFFIX = ".ckpt"


class Checkpoints(Checkpoint):
    """Keeps the best checkpoints and the last one.

    The best are chosen right after a validation, by the metric it has just measured. The last is written after every
    step that the plan saves after, and when the run is interrupted. Each file is written under another name and
    renamed.

    Args:
        config: what to keep.
        run_dir: the run; `config.dirpath` is relative to it.
        stop: tells that the user wants the run to end.
    """

    def __init__(self, config: CheckpointConfig, run_dir: Path, stop: GracefulStop) -> None:
        super().__init__()
        self.config = config
        self.directory = run_dir / config.dirpath
        self.stop = stop
        self.scores: dict[str, float] = {}
        """Checkpoints kept for their metric: file name -> value."""

    @property
    def best(self) -> Path | None:
        """The checkpoint with the best metric; None when none is kept."""
        ranked = self._ranked()
        return self.directory / ranked[0] if ranked else None

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        assert isinstance(module, TrainingModule)
        if module.plan.evaluates_after(module.step):
            return  # what is due comes after the validation
        if module.plan.saves_after(module.step):
            kept = self._save_named(trainer, module) if self.config.save_top_k == -1 else None
            self._save_last(trainer, kept)
        self._stop_if_asked(trainer)

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        assert isinstance(module, TrainingModule)
        if trainer.sanity_checking:
            self._check_config(trainer)
            return
        kept = self._keep_if_good(trainer, module)
        if module.plan.saves_after(module.step):
            self._save_last(trainer, kept)
        self._stop_if_asked(trainer)

    def state_dict(self) -> dict[str, Any]:
        return {"scores": dict(self.scores)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.scores = {name: v for name, v in state_dict["scores"].items() if (self.directory / name).exists()}

    def _keep_if_good(self, trainer: Trainer, module: TrainingModule) -> Path | None:
        """Save the present state if it is among the best; returns the file."""
        limit = self.config.save_top_k
        if limit == 0:
            return None
        value = trainer.callback_metrics[self.config.monitor].item()
        if math.isnan(value):
            value = math.inf if self.config.mode == "min" else -math.inf
        ranked = self._ranked()
        if limit > 0 and len(ranked) >= limit and not self._is_better(value, self.scores[ranked[limit - 1]]):
            return None
        kept = self._save_named(trainer, module, value)
        for name in self._ranked()[limit:] if limit > 0 else ():
            del self.scores[name]
            if trainer.is_global_zero:
                (self.directory / name).unlink(missing_ok=True)
        return kept

    def _save_named(self, trainer: Trainer, module: TrainingModule, value: float = math.nan) -> Path:
        metrics = {name: metric.item() for name, metric in trainer.callback_metrics.items()}
        stem = format_name(self.config.filename, module.plan.epoch_of(module.step), module.step, metrics)
        name, version = stem + SUFFIX, 1
        while name in self.scores:
            name, version = f"{stem}-v{version}{SUFFIX}", version + 1
        self.scores[name] = value  # before saving, so that the checkpoint knows of itself
        self._save(trainer, self.directory / name)
        return self.directory / name

    def _save_last(self, trainer: Trainer, same: Path | None, *, force: bool = False) -> None:
        """Write the last checkpoint; `same` is a file that holds the present state already."""
        path = self.directory / LAST
        if not (self.config.save_last or force):
            return
        if same is None:
            self._save(trainer, path)
        elif trainer.is_global_zero:
            _copy(same, path)

    def _save(self, trainer: Trainer, path: Path) -> None:
        temporary = _temporary(path)
        trainer.save_checkpoint(temporary)
        if trainer.is_global_zero:
            os.replace(temporary, path)

    def _stop_if_asked(self, trainer: Trainer) -> None:
        asked = self.stop.requested
        if trainer.world_size > 1:
            asked = trainer.strategy.reduce_boolean_decision(asked, all=False)
        if asked:
            self._save_last(trainer, None, force=True)
            raise TrainingInterrupted

    def _check_config(self, trainer: Trainer) -> None:
        """Refuse a metric or a file name that cannot work, before the first step."""
        known = sorted(trainer.callback_metrics)
        if self.config.save_top_k != 0 and self.config.monitor not in known:
            fault = f"no metric is called {self.config.monitor!r}"
            raise ConfigError(f"trainer.checkpoint.monitor: {fault}; there are {', '.join(known)}")
        format_name(self.config.filename, 0, 0, dict.fromkeys(known, 0.0))

    def _ranked(self) -> list[str]:
        """Names of the checkpoints kept for their metric, best first; the earlier of two equals first."""
        scored = [name for name, value in self.scores.items() if not math.isnan(value)]
        return sorted(scored, key=lambda name: self.scores[name], reverse=self.config.mode == "max")

    def _is_better(self, a: float, b: float) -> bool:
        return a < b if self.config.mode == "min" else a > b


def format_name(pattern: str, epoch: int, step: int, metrics: dict[str, float]) -> str:
    """The file name, without suffix, that a pattern like `{epoch:03d}-{step:07d}-{val_loss:.3f}` stands for.

    Raises:
        ConfigError: the pattern is broken, has an unknown name, or leads to another folder.
    """
    key = "trainer.checkpoint.filename"
    values: dict[str, float] = {**metrics, "epoch": epoch, "step": step}
    try:
        names = [name for _, name, _, _ in string.Formatter().parse(pattern) if name is not None]
        unknown = [name for name in names if name not in values]
        if unknown:
            known = ", ".join(sorted(values))
            raise ConfigError(f"{key}: unknown name {unknown[0]!r} in {pattern!r}; there are {known}")
        name = pattern.format(**values)
    except ValueError as error:
        example = "{epoch:03d}-{step:07d}"
        raise ConfigError(f"{key}: {pattern!r} is no pattern ({error}); write one like {example}") from error
    if Path(name).name != name or name.startswith(".") or name + SUFFIX == LAST:
        raise ConfigError(f"{key}: {pattern!r} is no file name of its own; leave out slashes and choose another")
    return name


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a checkpoint: tensors and plain values only, nothing in it is executed. Tensors stay in the file
    until they are used.

    Raises:
        CheckpointError: the file is broken or holds anything else.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # whatever torch makes of a broken file
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"{path}: is no usable checkpoint ({reason}); remove it to resume from another"
        ) from error


def _copy(source: Path, target: Path) -> None:
    """Give `source` a second name at once; the same bytes on disk where the file system allows it."""
    temporary = _temporary(target)
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:
        shutil.copyfile(source, temporary)
    os.replace(temporary, target)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp")
