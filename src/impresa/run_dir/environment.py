"""The circumstances of a run: versions, machine, command, commit and times, in `environment.json`."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

from annotated_types import MaxLen
from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict  # pydantic reads no other one before Python 3.12

from impresa import __version__
from impresa.files import write_atomic
from impresa.json_files import Count, read_json
from impresa.run_dir.layout import ENVIRONMENT

Word = Annotated[str, MaxLen(10_000)]
Command = Annotated[list[Annotated[str, MaxLen(1_000_000)]], MaxLen(10_000)]

PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "pillow", "wandb")


class Commit(TypedDict):
    """The state of the repository that a run was started in."""

    commit: Word
    has_changes: bool
    """Files differ from the commit."""


class Resumption(TypedDict):
    """A later start of the same run."""

    time: Word
    step: Count
    command: Command


@with_config(ConfigDict(extra="allow"))
class Environment(TypedDict, total=False):
    """The content of `environment.json`; keys of other versions are kept."""

    started: Word
    finished: Word
    resumed: Annotated[list[Resumption], MaxLen(100_000)]
    command: Command
    seed: Count
    impresa: Word
    python: Word
    packages: Annotated[dict[Word, Word | None], MaxLen(1_000)]
    platform: Word
    cpus: Count | None
    threads: Count
    gpus: Annotated[list[Word], MaxLen(1_000)]
    git: Commit | None


def describe_environment(command: Sequence[str], seed: int) -> Environment:
    """Plain values for a JSON file, ready to be written at the start of a run."""
    import torch  # here, so that `claim` needs none

    return {
        "started": now(),
        "command": list(command),
        "seed": seed,
        "impresa": __version__,
        "python": platform.python_version(),
        "packages": {name: installed_version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "git": _git(),
    }


def is_finished(run_dir: Path) -> bool:
    """True for a run that has been trained, evaluated and reported."""
    return "finished" in read_environment(run_dir)


def read_environment(run_dir: Path) -> Environment:
    """The values of `environment.json`; none when there is no such file.

    Raises:
        CheckpointError: it was not written by this program.
    """
    path = run_dir / ENVIRONMENT
    return read_json(path, Environment, fix="remove it") if path.is_file() else Environment()


def write_environment(run_dir: Path, environment: Environment) -> None:
    write_atomic(run_dir / ENVIRONMENT, json.dumps(environment, indent=2) + "\n")


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def installed_version(package: str) -> str | None:
    """The version of a library; None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git() -> Commit | None:
    """Commit of the working directory, and whether files differ from it; None outside a repository."""
    commit, changes = _ask_git("rev-parse", "HEAD"), _ask_git("status", "--porcelain", "--untracked-files=no")
    return None if commit is None else {"commit": commit, "has_changes": bool(changes)}


def _ask_git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
