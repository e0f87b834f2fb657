"""The checksums of what is loaded from a run, which prove that it is whole and unchanged. Needs no torch."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from impresa.errors import CheckpointError
from impresa.files import inside, write_atomic
from impresa.json_files import RESTORE, read_json
from impresa.run_dir.layout import BACKBONES, GOLDEN, MANIFEST, PREPROCESSING, TOKENIZER, WEIGHTS

FORMAT = 1
CHECKED_FILES = (WEIGHTS, PREPROCESSING, GOLDEN)
CHECKED_FOLDERS = (TOKENIZER, BACKBONES)


@dataclass(frozen=True)
class _Manifest:
    """The file of checksums."""

    format: Annotated[int, Field(ge=1, le=1_000_000)]
    sha256: Annotated[dict[Annotated[str, Field(max_length=1_000)], str], Field(max_length=10_000)]
    """By the name of the file in the run; a later format may have other ones."""


def write_manifest(run_dir: Path) -> None:
    """Write down the checksums; the last file of a run, which makes it whole."""
    folders = [path for folder in CHECKED_FOLDERS for path in sorted((run_dir / folder).rglob("*")) if path.is_file()]
    names = [*CHECKED_FILES, *(path.relative_to(run_dir).as_posix() for path in folders)]
    manifest = {"format": FORMAT, "sha256": {name: checksum(run_dir / name) for name in names}}
    write_atomic(run_dir / MANIFEST, json.dumps(manifest, indent=2) + "\n")


def checksums(run_dir: Path) -> dict[str, str]:
    """The sha256 of a run's files by name, as its manifest has them; raises `CheckpointError`."""
    if not (run_dir / MANIFEST).is_file():
        fix = f"`impresa train --output-dir {run_dir} --resume` finishes it"
        raise CheckpointError(f"{run_dir}: the training has not finished; {fix}")
    manifest = read_json(run_dir / MANIFEST, _Manifest)
    if manifest.format != FORMAT:
        fault = f"has format {manifest.format}, this version reads {FORMAT}"
        raise CheckpointError(f"{run_dir}: {fault}; upgrade impresa")
    return manifest.sha256


def verify(run_dir: Path) -> None:
    """Check a run's files against its manifest; raises `CheckpointError`."""
    expected = checksums(run_dir)
    for name in {**dict.fromkeys(CHECKED_FILES), **expected}:
        path = _inside(run_dir, name)
        if not path.is_file():
            raise CheckpointError(f"{path}: is missing; {RESTORE}")
        if checksum(path) != expected.get(name):
            raise CheckpointError(f"{path}: is not what the training wrote (checksum); {RESTORE}")


def _inside(run_dir: Path, name: str) -> Path:
    try:
        return inside(run_dir, name)
    except ValueError as error:
        raise CheckpointError(f"{run_dir / MANIFEST}: {error}; {RESTORE}") from error


def checksum(path: Path) -> str:
    """sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
