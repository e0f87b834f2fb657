"""Read a run directory: its config, and its model ready for use."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from safetensors import SafetensorError

from impresa.config import read_config
from impresa.config.experiment import ExperimentConfig
from impresa.config.paths import expanded, looked_in
from impresa.config.runs import check_embeds
from impresa.data.preprocessing import Preprocessing
from impresa.errors import CheckpointError, ConfigError, DataError
from impresa.run_dir.integrity import check_golden
from impresa.run_dir.layout import CONFIG
from impresa.run_dir.manifest import verify
from impresa.tasks import task_of
from impresa.tasks.devices import Device, cpu_by_default, float32_by_default, usable_device

if TYPE_CHECKING:
    from impresa.tasks.alignment.embedder import EmbeddingModel
    from impresa.tasks.answering.answerer import AnsweringModel


def read_run_config(run_dir: Path | str) -> ExperimentConfig:
    """The experiment of a run; `CheckpointError` if the folder is no run, or its config is damaged."""
    run_dir = _path_of(run_dir)
    if run_dir.is_file():
        raise CheckpointError(f"{run_dir}: is a file; give the run directory itself")
    if not run_dir.is_dir():
        fix = f"give the run directory that `impresa train` printed{looked_in(run_dir)}"
        raise CheckpointError(f"{run_dir}: no such folder; {fix}")
    if not (run_dir / CONFIG).is_file():
        raise CheckpointError(f"{run_dir}: is no run directory, it has no {CONFIG}; give one that `impresa train` made")
    path = run_dir / CONFIG
    try:
        return read_config(path)
    except ConfigError as error:
        lines = (line if line.startswith(f"{path}:") else f"{path}: {line}" for line in error.lines)
        raise CheckpointError(*lines) from error


@cpu_by_default()
@float32_by_default()
def load(run_dir: Path | str, device: Device | None = None) -> EmbeddingModel | AnsweringModel:
    """The model of a finished run, ready to embed images, texts and sounds, or to answer questions about images.

    The stored golden inputs are run again: a cosine below 0.999 to the outputs at the end of training is an error on
    the kind of device that the run was finished on, and a warning on another.

    Args:
        run_dir: the folder that `impresa train` printed.
        device: where to compute, a number is that of a GPU; None stands for a GPU if there is one, else the CPU.

    Returns:
        An `EmbeddingModel` of an alignment, an `AnsweringModel` of a run with a decoder.

    Raises:
        CheckpointError: the folder is no run, the run is unfinished, or a file is missing or damaged.
        ConfigError: the device cannot be used, or the language model that the run stands on cannot be read.
    """
    run_dir, device = _path_of(run_dir), usable_device(device)
    config = read_run_config(run_dir)
    verify(run_dir)
    try:
        preprocessing = Preprocessing.load(run_dir)
        with torch.random.fork_rng(devices=[]):  # the weights drawn here are overwritten
            model = task_of(config).standing_on(run_dir).restore(run_dir, preprocessing)
    except (DataError, SafetensorError, RuntimeError, OSError, ValueError, LookupError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{run_dir}: {reason}; restore the run from a copy, or train it again") from error
    usable = task_of(config).use(model, preprocessing, device)
    usable.run_dir = run_dir
    check_golden(run_dir, usable)
    return cast("EmbeddingModel | AnsweringModel", usable)


def _path_of(run_dir: Path | str) -> Path:
    if not isinstance(run_dir, str | Path) or not str(run_dir).strip():
        got = "nothing" if isinstance(run_dir, str) else type(run_dir).__name__
        raise CheckpointError(f"run_dir: got {got}; give the path of a run directory")
    return expanded(str(run_dir))


def load_embedder(run_dir: Path | str, device: Device | None = None) -> EmbeddingModel:
    """`load` for an alignment; any other run is a `CheckpointError`."""
    check_embeds(run_dir, read_run_config(run_dir))
    return cast("EmbeddingModel", load(run_dir, device))


def load_answerer(run_dir: Path | str, device: Device | None = None) -> AnsweringModel:
    """`load` for a run with a decoder; any other run is a `CheckpointError`."""
    if not task_of(read_run_config(run_dir)).answers:
        raise CheckpointError(f"{run_dir}: is an alignment and answers nothing; train one with a decoder on it")
    return cast("AnsweringModel", load(run_dir, device))
