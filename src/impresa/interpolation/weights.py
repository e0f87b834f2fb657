"""The straight line between the weights of two models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from impresa.config.experiment import ExperimentConfig, towers
from impresa.encoders.lora import ADAPTER
from impresa.errors import CheckpointError

State = Mapping[str, Tensor]
_LOSS = "loss."
_BASE = ".base_layer."


def without_adapters(config: ExperimentConfig) -> ExperimentConfig:
    """The experiment of the same model with its adapters merged, see `merged`."""
    plain: dict[str, Any] = {part: replace(tower, lora=None) for _, part, tower in towers(config)}
    return replace(config, **plain)


def merged(state: State, config: ExperimentConfig) -> dict[str, Tensor]:
    """The state with each low-rank adapter added to the layer that it changes, under the layer's plain name."""
    scales = {part: tower.lora.alpha / tower.lora.r for _, part, tower in towers(config) if tower.lora is not None}
    plain: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if ".lora_" in name:
            continue
        layer, base, kind = name.rpartition(_BASE)
        if base and kind == "weight":
            down, up = (state[f"{layer}.lora_{side}.{ADAPTER}.weight"].float() for side in "AB")
            plain[f"{layer}.{kind}"] = tensor.float() + scales[name.partition(".")[0]] * up @ down
        else:
            plain[f"{layer}.{kind}" if base else name] = tensor
    return plain


@dataclass(frozen=True)
class Line:
    """All weights from `before` (alpha 0) to `after` (alpha 1)."""

    before: dict[str, Tensor]
    after: dict[str, Tensor]
    note: str
    """A sentence on what is interpolated."""

    def at(self, alpha: float) -> dict[str, Tensor]:
        """The weights at `alpha`, in float32; at the ends they are those of the models to the bit."""
        return {
            name: torch.lerp(self.before[name].float(), end.float(), alpha) if end.is_floating_point() else end
            for name, end in self.after.items()
        }


def line_between(before: State, after: State, model: nn.Module, names: tuple[str, str]) -> Line:
    """The line between two states, of which `model` takes the second.

    Numbers of the loss that only one of them has are those of `after`: they change no embedding.

    Args:
        before, after: the states, adapters merged.
        model: says which tensors are buffers.
        names: of the two, for messages.

    Raises:
        CheckpointError: they are of different architectures.
    """
    start = {name: before.get(name, tensor if name.startswith(_LOSS) else None) for name, tensor in after.items()}
    lacking = [name for name, tensor in start.items() if tensor is None]
    lacking += [name for name in before if name not in after and not name.startswith(_LOSS)]
    fix = "name the model that it was fine-tuned from"
    if lacking:
        fault = f"{names[1]} is of another architecture than {names[0]} ({lacking[0]} is in one of them alone)"
        raise CheckpointError(f"{fault}; {fix}")
    found = {name: tensor for name, tensor in start.items() if tensor is not None}
    for name, tensor in found.items():
        if tensor.shape != after[name].shape:
            shapes = f"{name} has shape {tuple(after[name].shape)} and {tuple(tensor.shape)}"
            raise CheckpointError(f"{names[1]} is of another architecture than {names[0]} ({shapes}); {fix}")
    return Line(found, dict(after), _note(found, after, {name for name, _ in model.named_buffers()}))


def _note(before: State, after: State, buffers: set[str]) -> str:
    floats = [name for name, tensor in after.items() if tensor.is_floating_point()]
    num_buffers, num_others = len(buffers.intersection(floats)), len(after) - len(floats)
    parts = [f"{len(floats):,} tensors are interpolated in float32"]
    if num_buffers:
        parts.append(f"{num_buffers:,} buffers among them")
    if num_others:
        parts.append(f"{num_others:,} of whole numbers are those at the end")
    scales = [state["loss.logit_scale"].exp().item() for state in (before, after)]
    parts.append(f"the logit scale goes from {scales[0]:.4g} to {scales[1]:.4g} by its logarithm and ranks nothing")
    return "; ".join(parts)
