"""Proof that a run is whole and unchanged: checksums of what is loaded, and outputs that the model must give again."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch.nn import functional as F

from impresa.errors import CheckpointError, DataError, is_out_of_memory
from impresa.files import inside, replacing, write_atomic
from impresa.json_files import RESTORE, read_json
from impresa.run_dir.golden import Golden
from impresa.run_dir.layout import BACKBONES, GOLDEN, MANIFEST, PREPROCESSING, TOKENIZER, WEIGHTS

if TYPE_CHECKING:
    from impresa.data.sample import Sample
    from impresa.tasks.base import UsableModel

FORMAT = 1
CHECKED_FILES = (WEIGHTS, PREPROCESSING, GOLDEN)
CHECKED_FOLDERS = (TOKENIZER, BACKBONES)
SMALLEST_GOLDEN_COSINE = 0.999
_DAMAGE = (SafetensorError, DataError, RuntimeError, ValueError, OSError, LookupError, TypeError)
"""Exceptions that reading a golden file of any content raises."""


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


def verify(run_dir: Path) -> None:
    """Check a run's files against its manifest; raises `CheckpointError`."""
    if not (run_dir / MANIFEST).is_file():
        fix = f"`impresa train --output-dir {run_dir} --resume` finishes it"
        raise CheckpointError(f"{run_dir}: the training has not finished; {fix}")
    manifest = read_json(run_dir / MANIFEST, _Manifest)
    if manifest.format != FORMAT:
        fault = f"has format {manifest.format}, this version reads {FORMAT}"
        raise CheckpointError(f"{run_dir}: {fault}; upgrade impresa")
    checksums = manifest.sha256
    for name in {**dict.fromkeys(CHECKED_FILES), **checksums}:
        path = _inside(run_dir, name)
        if not path.is_file():
            raise CheckpointError(f"{path}: is missing; {RESTORE}")
        if checksum(path) != checksums.get(name):
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


def save_golden(run_dir: Path, model: UsableModel, examples: Sequence[Sample]) -> None:
    """Store a few inputs as they come, before any preprocessing, and the model's outputs for them."""
    tensors, metadata = model.golden_tensors(examples)
    with replacing(run_dir / GOLDEN) as temporary:
        save_file(tensors, temporary, {**metadata, "device": model.device.type})


def check_golden(run_dir: Path, model: UsableModel) -> None:
    """Compare the model's outputs for the stored inputs with the stored outputs.

    A difference is a `CheckpointError` on the kind of device that the run was finished on, a warning on another kind.
    A file without inputs, or without numbers, is damaged on any device.
    """
    path = run_dir / GOLDEN
    try:
        golden = Golden.read(path)
        there = golden.device
        pairs = [(now, then) for now, then in model.golden_pairs(golden) if len(then)]
        if not pairs:
            raise ValueError("it holds no inputs")
        cosines = torch.cat([F.cosine_similarity(now, then) for now, then in pairs])
    except _DAMAGE as error:
        if is_out_of_memory(error):  # the model does not fit the device, and the file is whole
            raise
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path}: is damaged ({reason}); {RESTORE}") from error
    if not cosines.isfinite().all():
        fault = "the model's outputs, or those that are stored, are no finite numbers"
        raise CheckpointError(f"{path}: {fault}; {RESTORE}")
    worst, here = cosines.min().item(), model.device.type
    if worst >= SMALLEST_GOLDEN_COSINE:
        return
    fault = f"{run_dir}: the model's outputs differ from those of the training (cosine {worst:.4f})"
    if here == there:
        raise CheckpointError(f"{fault}; use the versions that environment.json names, or train the run again")
    warnings.warn(f"{fault}, which was finished on {there}; this is {here}", stacklevel=3)
