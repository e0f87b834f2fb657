"""Proof that a run computes what it did at the end of its training: outputs that the model must give again."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch.nn import functional as F

from impresa.errors import CheckpointError, DataError, is_out_of_memory
from impresa.files import replacing
from impresa.json_files import RESTORE
from impresa.run_dir.golden import Golden
from impresa.run_dir.layout import GOLDEN

if TYPE_CHECKING:
    from impresa.data.sample import Sample
    from impresa.tasks.base import UsableModel

SMALLEST_GOLDEN_COSINE = 0.999
_DAMAGE = (SafetensorError, DataError, RuntimeError, ValueError, OSError, LookupError, TypeError)
"""Exceptions that reading a golden file of any content raises."""


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
