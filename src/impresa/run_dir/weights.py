"""Weights of a run: reading and writing them, whole or one part."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from impresa.config.encoder import EncoderConfig
from impresa.errors import CheckpointError
from impresa.files import replacing
from impresa.json_files import RESTORE
from impresa.layers.outline import TooLargeError, every_tensor, is_complete, outline
from impresa.run_dir.layout import WEIGHTS

Model = TypeVar("Model", bound=nn.Module)
MAX_TENSORS, MAX_NUMBERS = 4_000, 300_000_000
"""That a model may build and drop again, beside those that its file has."""
_TYPES = {"BOOL": torch.bool, "U8": torch.uint8, "I32": torch.int32, "I64": torch.int64}
_FLOATS = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True)
class _Stored:
    """A tensor as the header of a file describes it."""

    shape: tuple[int, ...]
    type: str

    def fits(self, tensor: torch.Tensor) -> bool:
        """True if the tensor can take it over. A training in 16 bits stores 16 bits."""
        is_float = tensor.is_floating_point() and self.type in _FLOATS
        return self.shape == tensor.shape and (is_float or _TYPES.get(self.type) == tensor.dtype)


def read_weights(path: Path, prefix: str = "") -> dict[str, torch.Tensor]:
    """The state dict, or what of it has names that begin with `prefix`; nothing else is read.

    Of tensors that share their storage the file has one, and names the others in its metadata.

    Raises:
        CheckpointError: a weight is no finite number.
    """
    with safe_open(path, framework="pt") as file:
        wanted = _wanted(file, prefix)
        tensors = {kept: file.get_tensor(kept) for kept in set(wanted.values())}
    for name, tensor in tensors.items():
        if not _is_finite(tensor):
            raise CheckpointError(f"{path}: {name} holds numbers that are not finite; {RESTORE}")
    return {name: tensors[kept] for name, kept in wanted.items()}


def _wanted(file: Any, prefix: str) -> dict[str, str]:
    """The names that begin with `prefix`, each with the one under which the open file has its tensor."""
    tied: dict[str, str] = file.metadata() or {}
    stored = {name: name for name in file.keys()}  # noqa: SIM118 - it is no dict
    stored |= {name: kept for name, kept in tied.items() if kept in stored}
    return {name: kept for name, kept in stored.items() if name.startswith(prefix)}


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


def restored(
    build: Callable[[], Model],
    path: Path,
    prefix: str = "",
    *,
    state_of: Callable[[Model], Mapping[str, torch.Tensor]] = nn.Module.state_dict,
    beside: int = 0,
) -> Model:
    """The module that `build` makes, with the weights of a file, or those of it whose names begin with `prefix`.

    It is made without memory at first and held against the header of the file, so that no config takes more memory
    than the file warrants. Where the file has all of its tensors that outline is filled; a module that computes or
    reads some of them itself is built a second time.

    Args:
        build: makes the module; what it draws is overwritten.
        path: the file.
        prefix: left out of the names in the module.
        state_of: the tensors that the file must have, no more and no fewer.
        beside: numbers that the module may hold beside them, such as those of a frozen language model.

    Raises:
        CheckpointError: the file is damaged or does not fit the module, or a weight is no finite number.
    """
    try:
        stored, held = _header(path, prefix)
        with outline(MAX_TENSORS + 4 * len(stored), MAX_NUMBERS + 8 * held + beside):
            found = build()
        expected = state_of(found)
        if (fault := _misfit(found, expected, stored, held)) is not None:
            raise TooLargeError(fault)
        weights = {name.removeprefix(prefix): tensor for name, tensor in read_weights(path, prefix).items()}
    except TooLargeError as error:
        raise CheckpointError(f"{path}: does not fit the config ({error}); {RESTORE}") from error
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: {' '.join(str(error).split())}; {RESTORE}") from error
    fills = is_complete(found, expected)
    if fills:  # with copies, for the file's own memory is not aligned as torch's
        weights = {name: tensor.to(expected[name].dtype, copy=True) for name, tensor in weights.items()}
    else:
        found = build()
    found.load_state_dict(weights, strict=False, assign=fills)
    return found


def _header(path: Path, prefix: str) -> tuple[dict[str, _Stored], int]:
    """Shapes and types by name, without `prefix`, and how many numbers there are; no weight is read."""
    with safe_open(path, framework="pt") as file:
        wanted = _wanted(file, prefix)
        parts = {name: file.get_slice(name) for name in set(wanted.values())}
        kept = {name: _Stored(tuple(part.get_shape()), part.get_dtype()) for name, part in parts.items()}
    stored = {name.removeprefix(prefix): kept[there] for name, there in wanted.items()}
    return stored, sum(math.prod(tensor.shape) for tensor in kept.values())


def _misfit(
    module: nn.Module, expected: Mapping[str, torch.Tensor], stored: Mapping[str, _Stored], held: int
) -> str | None:
    """Why a file's tensors are not those that a module expects, if so."""
    if other := expected.keys() ^ stored.keys():
        return min(other)
    for name, tensor in expected.items():
        if not stored[name].fits(tensor):
            ours = f"{tuple(tensor.shape)} of {str(tensor.dtype).removeprefix('torch.')}"
            return f"{name} has shape {stored[name].shape} of {stored[name].type} and not {ours}"
    tensors = every_tensor(module)
    needed = sum(tensor.numel() for tensor in {id(tensors[name]): tensors[name] for name in expected}.values())
    # Tensors that shared their storage when they were saved are in the file once, and here perhaps twice.
    return f"it describes {needed:,} numbers, and the file has {held:,}" if needed > 2 * held else None


def load_part(build: Callable[[], Model], run_dir: Path, part: str) -> Model:
    """The module that `build` makes, with the weights that a finished run has under the name `part`.

    Raises:
        CheckpointError: see `restored`.
    """
    try:
        return restored(build, run_dir / WEIGHTS, f"{part}.")
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{run_dir}: {part}: {reason}; name another run, or train this one again") from error


def with_stored_backbone(tower: EncoderConfig, folder: Path) -> EncoderConfig:
    """The tower with a run's own description of its pretrained backbone, if `folder` exists, instead of id or path."""
    return replace(tower, backbone=str(folder)) if folder.is_dir() else tower
