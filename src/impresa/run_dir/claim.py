"""The folder of a run before training: if it may be used, and which checkpoint a resumed run continues."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from impresa.config.compose import read_config
from impresa.config.experiment import ExperimentConfig, LabelsConfig
from impresa.config.locations import absolute_paths
from impresa.config.tree import hints, leaves, to_tree
from impresa.config.types import LoggingConfig
from impresa.errors import CheckpointError, ConfigError
from impresa.files import clear_half_written, refuse_links
from impresa.run_dir.environment import is_finished
from impresa.run_dir.layout import (
    BAD_SAMPLES,
    BEFORE,
    CONFIG,
    ENVIRONMENT,
    EVENTS,
    LAST_CHECKPOINT,
    LOCK,
    MANIFEST,
    METRICS,
    WANDB,
    WANDB_ID,
)
from impresa.run_dir.lock import locked, refuse_running

LENGTH = frozenset(f"trainer.{key}" for key in ("epochs", "max_steps", "early_stopping_patience"))
"""Keys that say when a run ends; with another one a finished run goes on."""
MAY_CHANGE = LENGTH | {
    "name",
    *(f"dataset.{key}" for key in ("num_workers", "prefetch_factor", "pin_memory", "persistent_workers")),
    *(f"dataset.{key}" for key in ("train_path", "val_path", "test_path", "max_bad_fraction", "cache_features")),
    *(
        f"trainer.{key}"
        for key in ("accelerator", "devices", "num_nodes", "strategy", "max_restarts", "timeout_minutes")
    ),
    *(f"trainer.logging.{key}" for key in hints(LoggingConfig)),
    *(f"trainer.checkpoint.{key}" for key in ("save_top_k", "save_last", "filename")),
    *(f"labels.{key}" for key in hints(LabelsConfig)),
}
"""Keys that may differ when a run is resumed: when it ends, where the data lie, how the machine computes, what is kept
and logged."""

_BEFORE_CONFIG = (LOCK, ENVIRONMENT, BAD_SAMPLES)
"""Files that a training may have written before it died without a config."""


@contextmanager
def claimed(run_dir: Path, config: ExperimentConfig, *, resume: bool) -> Iterator[Path | None]:
    """`claim`, and the folder's lock for as long as the block runs: nobody else trains in it meanwhile."""
    claim(run_dir, config, resume=resume)  # a folder of something else is not even locked
    with locked(run_dir):
        clear_half_written(run_dir)  # among them may be the last checkpoint
        yield claim(run_dir, config, resume=resume)


def claim(run_dir: Path, config: ExperimentConfig, *, resume: bool) -> Path | None:
    """The checkpoint from which a training run in this folder goes on; None for a new run.

    A folder is free when it does not exist, is empty, or holds a run that has no checkpoint yet. Nothing is written,
    and no torch is needed.

    Raises:
        CheckpointError: the folder holds something else, a run that is being trained, or a run while `resume` is false.
        ConfigError: the run to be resumed has another config.
    """
    refuse_running(run_dir)
    if not run_dir.exists() or (run_dir.is_dir() and all(map(_is_left_over, run_dir.iterdir()))):
        return None
    if not (run_dir / CONFIG).is_file():
        raise CheckpointError(f"{run_dir}: is not empty and no run; choose another --output-dir")
    refuse_links(run_dir, files=True)
    before = read_config(run_dir / CONFIG)
    checkpoint = newest_checkpoint(run_dir / before.trainer.checkpoint.dirpath)
    if checkpoint is None and not (run_dir / MANIFEST).exists():
        return None
    if not resume:
        raise CheckpointError(f"{run_dir}: holds a run; add --resume to continue it, or choose another --output-dir")
    if checkpoint is None and not is_over(run_dir, config):
        raise CheckpointError(f"{run_dir}: has no checkpoint to go on from; choose another --output-dir")
    _refuse_changes(before, config)
    return checkpoint


def is_over(run_dir: Path, config: ExperimentConfig) -> bool:
    """True for a finished run that `config` gives the length that it has."""
    return is_finished(run_dir) and not LENGTH & _changes(read_config(run_dir / CONFIG), config).keys()


def how_to_go_on(run_dir: Path, config: ExperimentConfig) -> str:
    """The words that tell what can be done with a run whose training ended too early."""
    if not run_dir.is_dir():
        return "nothing is left to resume, so start it anew"
    if newest_checkpoint(run_dir / config.trainer.checkpoint.dirpath) is None:
        return "there is no checkpoint yet, so start it anew"
    return f"`impresa train --output-dir {shlex.quote(str(run_dir))} --resume` continues from the last checkpoint"


def newest_checkpoint(directory: Path) -> Path | None:
    """The last checkpoint, else the newest of the others; None when there is none."""
    last = directory / LAST_CHECKPOINT
    if last.exists():
        return last
    return max(directory.glob("*.ckpt"), key=lambda path: path.stat().st_mtime, default=None)


def clear(run_dir: Path) -> None:
    """Remove the files that a run without a checkpoint has left behind, so that a new one starts clean."""
    for name in (EVENTS, WANDB):
        shutil.rmtree(run_dir / name, ignore_errors=True)
    for name in (METRICS, BEFORE, BAD_SAMPLES, ENVIRONMENT, WANDB_ID):
        (run_dir / name).unlink(missing_ok=True)


def _is_left_over(path: Path) -> bool:
    return path.name in _BEFORE_CONFIG or (path.name.startswith(".") and path.name.endswith((".tmp", ".old")))


def _refuse_changes(before: ExperimentConfig, now: ExperimentConfig) -> None:
    faults = [
        f"{key}: was {old} and is {new}; a resumed run keeps its config, so restore it"
        for key, (old, new) in sorted(_changes(before, now).items())
        if key not in MAY_CHANGE
    ]
    if faults:
        raise ConfigError(*faults)


def _changes(before: ExperimentConfig, now: ExperimentConfig) -> dict[str, tuple[object, object]]:
    """The keys that differ, with their values; paths are compared in full."""
    old, new = ({**dict(leaves(to_tree(config))), **absolute_paths(config)} for config in (before, now))
    return {key: (old.get(key), new.get(key)) for key in old.keys() | new.keys() if old.get(key) != new.get(key)}
