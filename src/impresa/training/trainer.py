"""Lightning's Trainer as this library uses it, and Lightning's voice turned down to what helps a user."""

from __future__ import annotations

import logging
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from impresa.config.experiment import ExperimentConfig
from impresa.errors import ConfigError
from impresa.training.precision import BFloat16Weights

UNHELPFUL = (
    ".*does not have many workers.*",  # the user chose num_workers
    ".*GPU available but not used.*",  # the user chose the accelerator
    ".*Checkpoint directory .* exists and is not empty.*",  # so it is when a run is resumed
    ".*isinstance.treespec, LeafSpec.. is deprecated.*",  # Lightning's own affair
    ".*Found .* module.* in eval mode at the start of training.*",  # frozen towers are meant to be
    ".*is smaller than the logging interval.*",  # the plan handles it
    ".*srun. command is available on your system but is not used.*",
)


def build_trainer(
    config: ExperimentConfig,
    run_dir: Path | None,
    *,
    callbacks: list[Callback],
    **more: Any,
) -> Trainer:
    """The Trainer of an experiment. Its "epochs" are the stretches between two validations (see `StepLoader`).

    Args:
        config: the experiment.
        run_dir: the run; None writes nothing.
        callbacks: what takes part.
        more: further arguments of Lightning's Trainer.

    Raises:
        ConfigError: the hardware that the config asks for is not there.
    """
    _turn_down_lightning()
    settings, precision = config.trainer, config.optimization.precision
    plugins: list[Any] = [BFloat16Weights()] if precision == "bf16-true" else []
    # A requeued job resumes through --resume; Lightning's own way would get between.
    plugins += [SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() else []
    try:
        return Trainer(
            accelerator=settings.accelerator,
            devices=settings.devices,
            num_nodes=settings.num_nodes,
            strategy=settings.strategy,
            precision=None if precision == "bf16-true" else precision,
            deterministic=settings.deterministic,
            default_root_dir=run_dir,
            callbacks=callbacks,
            # The sampler knows ranks; the step loader ends each stretch where a validation is due.
            use_distributed_sampler=False,
            check_val_every_n_epoch=1,
            enable_progress_bar=False,
            enable_model_summary=False,
            plugins=plugins,
            **more,
        )
    except (MisconfigurationException, RuntimeError, ValueError) as error:
        asked = f"accelerator {settings.accelerator}, devices {settings.devices}"
        reason = str(error).splitlines()[0]
        raise ConfigError(f"trainer.accelerator: {asked} cannot be had here ({reason}); try cpu or auto") from error


def leave_cores_to_workers(num_workers: int) -> None:
    """On a CPU, compute with the cores that the data workers leave free, unless OMP_NUM_THREADS says otherwise.

    More threads than cores wait for each other, which costs small models on small machines half of their speed.
    """
    if num_workers and not torch.cuda.is_available() and "OMP_NUM_THREADS" not in os.environ:
        free = max((os.cpu_count() or 1) - num_workers, 1)
        torch.set_num_threads(min(free, torch.get_num_threads()))


def _turn_down_lightning() -> None:
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in UNHELPFUL:
        warnings.filterwarnings("ignore", message)
