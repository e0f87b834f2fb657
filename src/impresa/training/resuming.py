"""The checkpoint that a run continues from, and the length that it gets then."""

from __future__ import annotations

import logging
from collections.abc import Mapping
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
