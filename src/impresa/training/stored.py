"""The parts that a run needs of a checkpoint to go on from it: the file may be damaged, of another run, or forged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor, nn

from impresa.config.types import CountOrZero
from impresa.errors import CheckpointError
from impresa.training.costs import Spent


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
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state, names = stored.get("state"), _state_of_one(optimizer)
    if not isinstance(state, Mapping) or not set(state) <= set(range(len(parameters))):
        raise _misfit("optimizer")
    for number, entries in state.items():
        shapes = {name: torch.Size() if scalar else parameters[number].shape for name, scalar in names.items()}
        check_tensors(entries, {name: torch.empty(shape, device="meta") for name, shape in shapes.items()})
    optimizer.load_state_dict({"state": dict(state), "param_groups": own["param_groups"]})


def _state_of_one(optimizer: torch.optim.Optimizer) -> dict[str, bool]:
    """The tensors that this kind of optimizer keeps for a parameter, and for each if it is a scalar."""
    parameter = nn.Parameter(torch.zeros(2))
    parameter.grad = torch.zeros(2)
    probe = type(optimizer)([parameter], lr=0.0)  # type: ignore[call-arg]
    probe.param_groups[0] = {**optimizer.param_groups[0], "params": [parameter]}
    probe.step()
    return {name: value.ndim == 0 for name, value in probe.state[parameter].items()}


def _misfit(name: str) -> CheckpointError:
    return CheckpointError(
        f"checkpoint: does not fit the model ({name}); resume with the run's own config, or remove it to use another"
    )
