"""Weights of a run: reading and writing them, whole or one part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from impresa.config.experiment import EncoderConfig
from impresa.errors import CheckpointError
from impresa.files import replacing
from impresa.run_dir.layout import WEIGHTS


def read_weights(path: Path, prefix: str = "") -> dict[str, torch.Tensor]:
    """The state dict, or what of it has names that begin with `prefix`; nothing else is read.

    Of tensors that share their storage the file has one, and names the others in its metadata.

    Raises:
        CheckpointError: a weight is no finite number.
    """
    with safe_open(path, framework="pt") as file:
        tied: dict[str, str] = file.metadata() or {}
        stored = {name: name for name in file.keys()}  # noqa: SIM118 - it is no dict
        stored |= {name: kept for name, kept in tied.items() if kept in stored}
        wanted = {name: kept for name, kept in stored.items() if name.startswith(prefix)}
        tensors = {kept: file.get_tensor(kept) for kept in set(wanted.values())}
    for name, tensor in tensors.items():
        if not _is_finite(tensor):
            raise CheckpointError(f"{path}: {name} holds numbers that are not finite; restore the run from a copy")
    return {name: tensors[kept] for name, kept in wanted.items()}


def _is_finite(tensor: torch.Tensor) -> bool:
    """The sum, which is fast, decides nearly always: it is finite only if no number is NaN or infinite."""
    return not tensor.is_floating_point() or bool(tensor.sum().isfinite() or tensor.isfinite().all())


def write_weights(path: Path, state: Mapping[str, torch.Tensor]) -> None:
    """Write a state dict in the form that `read_weights` reads, at once or not at all."""
    first: dict[tuple[int, torch.Size, torch.dtype], str] = {}
    tied: dict[str, str] = {}
    for name, tensor in state.items():
        kept = first.setdefault((tensor.data_ptr(), tensor.shape, tensor.dtype), name)
        if kept != name and tensor.numel():  # empty tensors have no storage to share
            tied[name] = kept
    own = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items() if name not in tied}
    with replacing(path) as temporary:
        save_file(own, str(temporary), tied)


def load_part(module: nn.Module, run_dir: Path, part: str) -> None:
    """Give a module the weights that a finished run has under the name `part`; raises `CheckpointError`."""
    try:
        own = read_weights(run_dir / WEIGHTS, f"{part}.")
        module.load_state_dict({name.removeprefix(f"{part}."): value for name, value in own.items()})
    except (SafetensorError, RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{run_dir}: {part}: {reason}; name another run, or train this one again") from error


def with_stored_backbone(tower: EncoderConfig, folder: Path) -> EncoderConfig:
    """The tower with a run's own description of its pretrained backbone, if `folder` exists, instead of id or path."""
    return replace(tower, backbone=str(folder)) if folder.is_dir() else tower
