"""The several processes of a distributed training, known from the environment before torch is imported."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from impresa.errors import ConfigError

RUN_DIR = "IMPRESA_RUN_DIR"
"""How the first process tells those that it starts which folder is theirs."""


def is_main_process() -> bool:
    """Whether this is the first process of a training, or its only one."""
    if "RANK" in os.environ:
        return os.environ["RANK"] == "0"
    return all(os.environ.get(name, "0") == "0" for name in ("LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"))


def has_siblings() -> bool:
    """Whether torchrun, SLURM, the user or the first process of this training has started several processes."""
    is_one_of_many = any(name in os.environ for name in ("RANK", "LOCAL_RANK", "NODE_RANK"))
    return is_one_of_many or int(os.environ.get("SLURM_NTASKS", "1")) > 1


def tell_run_dir(run_dir: Path) -> None:
    """Let the processes that this one will start know the run directory."""
    os.environ[RUN_DIR] = str(run_dir)


def inherited_run_dir() -> Path | None:
    """The run directory that the first process has chosen; None in that process itself.

    Raises:
        ConfigError: all processes were started at once, so that none can choose for the others.
    """
    if not has_siblings():
        return None
    if RUN_DIR not in os.environ:
        raise ConfigError("--output-dir: several processes were started at once; name one folder for all of them")
    return Path(os.environ[RUN_DIR])


def end_process() -> int:
    """The exit code of a training that went well.

    One process of several leaves at once: everything is written, and taking down the process group at exit crashes
    now and then, which would make a launcher believe that the training failed.
    """
    if has_siblings():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
    return 0
