"""The parts that a run needs of a checkpoint to go on from it: the file may be damaged, of another run, or forged."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor, nn

from impresa.config.types import CountOrZero
from impresa.errors import CheckpointError
from impresa.training.costs import Spent
from impresa.training.shared import shared_like


class Position(BaseModel):
    """Position in the data, and what it depends on."""

    epoch: CountOrZero
    next_batch: CountOrZero
    num_samples: CountOrZero
    global_batch_size: CountOrZero
    world_size: CountOrZero
    seed: CountOrZero
    accumulated: CountOrZero | None = None
    """Batches of a step on one process; None: as many as the config says."""


class Content(BaseModel):
    """The parts of a checkpoint and their types; shapes are compared with those of the run later."""

    model_config = ConfigDict(strict=True, arbitrary_types_allowed=True)

    step: CountOrZero
    epoch: CountOrZero
    scores: dict[str, float]
    model: dict[str, Tensor]
    optimizer: dict[str, Any]
    scaler: dict[str, float] | None
    average: dict[str, Tensor] | None
    data: Position
    losses: list[float]
    total_steps: CountOrZero
    warmup_steps: CountOrZero
    monitored: list[tuple[int, float]]
    cost: Spent = Spent()


def check_content(content: Mapping[str, Any]) -> None:
    """Raise a `ValueError` that names the first part which is missing or is something else."""
    try:
        Content.model_validate(content)
    except ValidationError as error:
        part = ".".join(map(str, error.errors()[0]["loc"]))
        raise ValueError(f"`{part}` is missing or is something else") from error


def check_tensors(stored: Mapping[str, Any], own: Mapping[str, Tensor]) -> None:
    """Refuse tensors with other names or shapes than those whose place they are to take; copying would stretch them.

    Raises:
        CheckpointError: names the first that differs.
    """
    if other := stored.keys() ^ own.keys():
        raise _misfit(min(other))
    for name, tensor in own.items():
        if not isinstance(stored[name], Tensor) or stored[name].shape != tensor.shape:
            raise _misfit(name)


def load_optimizer(optimizer: torch.optim.Optimizer, stored: Mapping[str, Any]) -> None:
    """Take over the moments of a stored optimizer; its settings stay those of the config.

    Raises:
        CheckpointError: they are of other parameters, or of another optimizer.
    """
    own = optimizer.state_dict()
    groups = enumerate(optimizer.param_groups)
    places = [(number, parameter) for number, group in groups for parameter in group["params"]]
    state = stored.get("state")
    if not isinstance(state, Mapping) or not set(state) <= set(range(len(places))):
        raise _misfit("optimizer")
    expected: dict[tuple[int, torch.Size], dict[str, Any]] = {}
    for number, entries in state.items():
        group, parameter = places[number]
        if (group, parameter.shape) not in expected:
            expected[group, parameter.shape] = _state_of_one(optimizer, group, parameter.shape)
        _check_entries(entries, expected[group, parameter.shape])
    placed = {number: _placed(entries, places[number][1]) for number, entries in state.items()}
    optimizer.load_state_dict({"state": placed, "param_groups": own["param_groups"]})


def _placed(entries: Mapping[str, Any], parameter: Tensor) -> dict[str, Any]:
    """The entries of a parameter, those of its shape shared out as it is."""
    has_its_shape = {name: getattr(value, "shape", None) == parameter.shape for name, value in entries.items()}
    return {name: shared_like(v, parameter) if has_its_shape[name] else v for name, v in entries.items()}


def _state_of_one(optimizer: torch.optim.Optimizer, group: int, shape: torch.Size) -> dict[str, Any]:
    """What an optimizer keeps for a parameter of this shape in the group of this number: tensors and plain values, as
    in its state dict; found by a step of a copy."""
    parameter = nn.Parameter(torch.zeros(shape))
    parameter.grad = torch.zeros(shape)
    probe = object.__new__(type(optimizer))  # torch's `copy` of an optimizer leaves out what a subclass has
    probe.__dict__ |= optimizer.__dict__
    probe.state = defaultdict(dict)
    probe.param_groups = [{**optimizer.param_groups[group], "params": [parameter]}]
    probe.step()
    kept: dict[str, Any] = probe.state_dict()["state"][0]
    return kept


def _check_entries(stored: Any, own: Mapping[str, Any]) -> None:
    """Refuse other entries than an optimizer's own ones, in sections as it has them."""
    if not isinstance(stored, Mapping):
        raise _misfit("optimizer")
    tensors = {name: value for name, value in own.items() if isinstance(value, Tensor)}
    plain = own.keys() - tensors.keys()
    check_tensors({name: value for name, value in stored.items() if name not in plain}, tensors)
    for name in plain:
        if isinstance(own[name], Mapping):
            _check_entries(stored.get(name), own[name])
        elif type(stored.get(name)) is not type(own[name]):
            raise _misfit(name)


def _misfit(name: str) -> CheckpointError:
    return CheckpointError(
        f"checkpoint: does not fit the model ({name}); resume with the run's own config, or remove it to use another"
    )
