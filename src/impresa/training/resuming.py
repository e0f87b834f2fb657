"""The checkpoint that a run continues from, and the length that it gets then."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from impresa.config.experiment import ExperimentConfig, TrainerConfig
from impresa.config.memory_vlm import both_names
from impresa.errors import ConfigError
from impresa.run_dir.claim import is_over
from impresa.training.checkpoints import read_checkpoint
from impresa.training.distributed import Group
from impresa.training.plan import Plan

logger = logging.getLogger(__name__)

Checkpoint = Mapping[str, Any]
"""The content of the checkpoint that a run continues from; empty for a new run."""


def checkpoint_to_continue(
    config: ExperimentConfig, run_dir: Path, path: Path | None, group: Group
) -> Checkpoint | None:
    """The checkpoint at the `path` that the first process has found, for all; None for a finished run, which has none
    to go on from."""
    own = [(path, is_over(run_dir, config))] if group.is_main else []
    ((path, over),) = group.gather(own)
    return None if over else {} if path is None else read_checkpoint(path)


def with_same_batch(config: ExperimentConfig, checkpoint: Checkpoint, world_size: int) -> ExperimentConfig:
    """The experiment as so many processes go on with it: each step has the samples that it had before, and those meet
    in the loss that met before.

    Samples meet in the batch of all processes (`losses.gather_distributed`), in that of one, or, of a model that
    answers, nowhere. With a line where something changes.

    Raises:
        ConfigError: so many processes cannot share a step.
    """
    position, own = checkpoint["data"], config.dataset.batch_size
    accumulated = position.get("accumulated") or config.trainer.accumulate_grad_batches
    together, before = position["global_batch_size"], position["world_size"]
    if before == world_size and together == own * world_size and accumulated == config.trainer.accumulate_grad_batches:
        return config
    if config.decoder is not None:
        size, num = _shares(together * accumulated, world_size, together // before)
    elif config.losses.gather_distributed:
        size, num = together // world_size, accumulated
    else:
        size, num = together // before, before * accumulated // world_size
    if size * num * world_size != together * accumulated or not size * num:
        parts = "samples" if config.decoder is not None or config.losses.gather_distributed else "batches"
        shared = {"samples": together, "batches": before * accumulated}[parts]
        if config.decoder is not None:
            shared *= accumulated
        fix = f"the run had {before}; resume it with a number that divides {shared}"
        if parts == "batches":
            fix += " (without losses.gather_distributed each batch stays whole on one process)"
        raise ConfigError(f"trainer.devices: {world_size} processes cannot share the {shared} {parts} of a step; {fix}")
    logger.warning(
        f"goes on with {size} x {world_size} x {num} samples in a step (batch x processes x accumulated); "
        f"it had {together // before} x {before} x {accumulated}"
    )
    dataset = replace(config.dataset, batch_size=size, eval_batch_size=config.dataset.eval_batch_size or own)
    return replace(config, dataset=dataset, trainer=replace(config.trainer, accumulate_grad_batches=num))


def _shares(step: int, world_size: int, most: int) -> tuple[int, int]:
    """Size and number of the batches that each process makes of a step's samples: the largest that take no more memory
    than before; zeros where they cannot be shared."""
    share, rest = divmod(step, world_size)
    if rest:
        return 0, 0
    size = max(size for size in range(1, min(share, most) + 1) if share % size == 0)
    return size, share // size


def check_length(plan: Plan, config: TrainerConfig, checkpoint: Checkpoint) -> None:
    """Say in one line that a resumed run has become longer or shorter, or has no steps left.

    Raises:
        ConfigError: it has gone beyond its new end already.
    """
    end, step, before = plan.total_steps, checkpoint["step"], checkpoint["total_steps"]
    if step > end:
        key = "max_steps" if end == config.max_steps else "epochs"
        asked = f"{both_names(f'trainer.{key}')}: {getattr(config, key)} ends the run at step {end}"
        raise ConfigError(f"{asked}, and it has made {step} already; a resumed run can end there at the earliest")
    if step == end == before:
        logger.warning(f"there are no steps to make: the run ends at step {end}, as before")
    if end == before:
        return
    rates = "with the learning rates that a run of this length has from here on"
    how = f"goes on after step {step} to step {end}, {rates}" if end > step else f"ends here, after step {end}"
    logger.warning(f"the run {how}; it was to end at step {before}")
