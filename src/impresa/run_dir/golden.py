"""Golden inputs: a few samples with the model's outputs at the end of training, checked again when it is loaded."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.nn import functional as F

from impresa.data.sample import Sample
from impresa.errors import CheckpointError
from impresa.files import replacing
from impresa.run_dir.layout import GOLDEN
from impresa.tasks.base import UsableModel

SMALLEST_GOLDEN_COSINE = 0.999


def save_golden(run_dir: Path, model: UsableModel, examples: Sequence[Sample]) -> None:
    """Store inputs as they come, before any preprocessing, and the model's outputs for them."""
    tensors, metadata = model.golden_tensors(examples)
    with replacing(run_dir / GOLDEN) as temporary:
        save_file(tensors, temporary, {**metadata, "device": model.device.type})


def check_golden(run_dir: Path, model: UsableModel) -> None:
    """Compare the model's outputs for the golden inputs now with those of then.

    Raises:
        CheckpointError: they differ on the kind of device that the run was finished on; on another kind it is a
            warning.
    """
    try:
        with safe_open(run_dir / GOLDEN, framework="pt") as file:
            metadata: dict[str, Any] = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
    except SafetensorError as error:
        raise CheckpointError(f"{run_dir / GOLDEN}: {error}; restore the run from a copy") from error
    pairs = model.golden_pairs(tensors, metadata)
    worst = min((F.cosine_similarity(now, then).min().item() for now, then in pairs if len(then)), default=1.0)
    if worst >= SMALLEST_GOLDEN_COSINE:
        return
    fault = f"{run_dir}: the model's outputs differ from those of the training (cosine {worst:.4f})"
    there, here = metadata["device"], model.device.type
    if here == there:
        raise CheckpointError(f"{fault}; use the versions that environment.json names, or train the run again")
    warnings.warn(f"{fault}, which was finished on {there}; this is {here}", stacklevel=3)
