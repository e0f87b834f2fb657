"""Checksums of what is loaded from a run: proof that it is whole and unchanged."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from impresa.errors import CheckpointError
from impresa.files import write_atomic
from impresa.run_dir.layout import BACKBONES, GOLDEN, MANIFEST, PREPROCESSING, TOKENIZER, WEIGHTS

FORMAT = 1
CHECKED_FILES = (WEIGHTS, PREPROCESSING, GOLDEN)
CHECKED_FOLDERS = (TOKENIZER, BACKBONES)


def write_manifest(run_dir: Path) -> None:
    """Write down the checksums; the last thing that makes a run whole."""
    checksums = {name: checksum(run_dir / name) for name in _checked(run_dir)}
    write_atomic(run_dir / MANIFEST, json.dumps({"format": FORMAT, "sha256": checksums}, indent=2) + "\n")


def verify(run_dir: Path) -> None:
    """Check a run's files against its manifest.

    Raises:
        CheckpointError: the run is unfinished, or a file is not the one that training wrote.
    """
    if not (run_dir / MANIFEST).is_file():
        fix = f"`impresa train --output-dir {run_dir} --resume` finishes it"
        raise CheckpointError(f"{run_dir}: the training has not finished; {fix}")
    try:
        manifest = json.loads((run_dir / MANIFEST).read_text())
        version, checksums = manifest["format"], manifest["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{run_dir / MANIFEST}: is damaged; restore the run from a copy") from error
    if version != FORMAT:
        raise CheckpointError(f"{run_dir}: has format {version}, this version reads {FORMAT}; upgrade impresa")
    for name in {**dict.fromkeys(CHECKED_FILES), **checksums}:
        path = run_dir / name
        if not path.is_file():
            raise CheckpointError(f"{path}: is missing; restore the run from a copy")
        if checksum(path) != checksums.get(name):
            raise CheckpointError(f"{path}: is not what the training wrote (checksum); restore the run from a copy")


def _checked(run_dir: Path) -> list[str]:
    """Names of the files whose checksums are kept."""
    folders = [path for folder in CHECKED_FOLDERS for path in sorted((run_dir / folder).rglob("*")) if path.is_file()]
    return [*CHECKED_FILES, *(path.relative_to(run_dir).as_posix() for path in folders)]


def checksum(path: Path) -> str:
    """sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
