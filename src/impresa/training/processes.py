"""The processes that train together, as their launcher describes them; known before torch is imported."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass

from impresa.errors import ConfigError

LAUNCHED = "IMPRESA_LAUNCHED"
"""Environment variable of a process that `launch` has started."""
ALONE_IN_SLURM = ("bash", "interactive")
"""Job names of shells on a SLURM node: what is started there by hand is one process, whatever SLURM_NTASKS says."""


@dataclass(frozen=True)
class Place:
    """The place of one process among those that train together."""

    rank: int = 0
    local_rank: int = 0
    """Number of the process on its machine."""
    world_size: int = 1
    local_world_size: int = 1
    """Number of processes on each machine."""


def this_process() -> Place:
    """The place that torchrun, SLURM or our own launcher gave this process; without any of them it is alone."""
    env = os.environ
    if "RANK" in env and "WORLD_SIZE" in env:
        world = int(env["WORLD_SIZE"])
        return Place(int(env["RANK"]), int(env.get("LOCAL_RANK", "0")), world, int(env.get("LOCAL_WORLD_SIZE", world)))
    if "SLURM_PROCID" in env and env.get("SLURM_JOB_NAME") not in ALONE_IN_SLURM:
        world = int(env.get("SLURM_NTASKS", 1))
        nodes = int(env.get("SLURM_JOB_NUM_NODES", env.get("SLURM_NNODES", 1)))
        return Place(int(env["SLURM_PROCID"]), int(env.get("SLURM_LOCALID", 0)), world, world // nodes)
    return Place()


def set_rendezvous(place: Place) -> None:
    """Tell torch where the processes of a SLURM job meet, unless the user or torchrun has said so already."""
    os.environ.setdefault("MASTER_ADDR", _first_host(os.environ.get("SLURM_NODELIST", "127.0.0.1")))
    os.environ.setdefault("MASTER_PORT", str(15_000 + int(os.environ.get("SLURM_JOB_ID", "0")) % 20_000))
    os.environ.update(RANK=str(place.rank), WORLD_SIZE=str(place.world_size), LOCAL_RANK=str(place.local_rank))


def is_main_process() -> bool:
    """Whether this is the first process of a training run, or its only one."""
    return this_process().rank == 0


def check_shared_folder(named: bool) -> None:
    """Processes that were started at once cannot choose a run directory for each other.

    Args:
        named: the user has named a run directory.

    Raises:
        ConfigError: there are several processes and no name.
    """
    if this_process().world_size > 1 and not named:
        raise ConfigError("--output-dir: several processes were started at once; name one folder for all of them")


def end_process() -> int:
    """The exit code of a training run that went well.

    One process of several leaves at once: everything is written, and taking down the process group at exit crashes
    now and then, which would make a launcher believe that the run failed.
    """
    if this_process().world_size > 1:
        leave(0)
    return 0


def leave(code: int) -> None:
    """End this process without taking down what lives in its threads."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _first_host(nodes: str) -> str:
    """The first host of SLURM's list of nodes, such as `node[003-007,12],other`."""
    found = re.match(r"([^\[,\s]+)(?:\[(\w+))?", nodes)
    return nodes if found is None else found[1] + (found[2] or "")
