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
from typing import Any

from impresa import __version__
from impresa.errors import CheckpointError
from impresa.files import write_atomic
from impresa.run_dir.layout import ENVIRONMENT

PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "pillow", "wandb")


def describe_environment(command: Sequence[str], seed: int) -> dict[str, Any]:
    """Plain values for a JSON file, ready to be written at the start of a run."""
    import torch  # here, so that `claim` needs none

    return {
        "started": now(),
        "command": list(command),
        "seed": seed,
        "impresa": __version__,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "git": _git(),
    }


def is_finished(run_dir: Path) -> bool:
    """True for a run that has been trained, evaluated and reported."""
    return "finished" in read_environment(run_dir)


def read_environment(run_dir: Path) -> dict[str, Any]:
    """Content of `environment.json`; empty when there is no such file."""
    path = run_dir / ENVIRONMENT
    try:
        tree = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: is no JSON ({error}); remove it") from error
    return tree if isinstance(tree, dict) else {}


def write_environment(run_dir: Path, environment: dict[str, Any]) -> None:
    write_atomic(run_dir / ENVIRONMENT, json.dumps(environment, indent=2) + "\n")


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git() -> dict[str, Any] | None:
    """Commit of the working directory, and whether files differ from it; None outside a repository."""
    commit, changes = _ask_git("rev-parse", "HEAD"), _ask_git("status", "--porcelain", "--untracked-files=no")
    return None if commit is None else {"commit": commit, "has_changes": bool(changes)}


def _ask_git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
