"""Watches of training steps, and the metrics of a validation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch
from torch import Tensor

if TYPE_CHECKING:
    from impresa.tasks.base import ModelOutput

T = TypeVar("T")


class Processes(Protocol):
    """The interface of `impresa.training.distributed.Group` that tasks need."""

    @property
    def world_size(self) -> int:
        """Their number."""

    def sum(self, value: Tensor) -> Tensor:
        """The sum over the processes."""

    def gather(self, items: Iterable[T]) -> list[T]:
        """The items of all processes, in the order of the ranks."""


class StepWatch(Protocol):
    """Looks at each step of a training run."""

    def after_step(self, step: int, batches: Sequence[Any], logs: Mapping[str, Tensor]) -> None:
        """Look at the logs of optimizer step number `step` and at its batches."""


class Validation(Protocol):
    """Collects one validation."""

    def add(self, batch: Any, output: Any) -> None:
        """Add the model's output for a batch."""

    def metrics(self) -> dict[str, float]:
        """Metrics over the whole validation and all processes, by names that begin with `val_`."""


class NoWatch:
    """Looks at nothing."""

    def after_step(self, step: int, batches: Sequence[Any], logs: Mapping[str, Tensor]) -> None:
        return


class Means:
    """Means over the batches of a validation, which have unequal weights, and over processes.

    Values stay tensors until the end, so that no batch waits for a GPU. They are added up in the order of the batches
    over all processes: the same numbers, to the last bit, on any number of them.
    """

    def __init__(self) -> None:
        self._values: list[tuple[dict[str, Tensor], int]] = []

    def add(self, values: Mapping[str, Tensor], weight: int) -> None:
        """Add the values of a batch."""
        self._values.append((dict(values), weight))

    def over(self, group: Processes) -> dict[str, float]:
        """The means, in float64."""
        own = [({name: value.item() for name, value in values.items()}, weight) for values, weight in self._values]
        sums: dict[str, tuple[float, int]] = {}
        for values, weight in group.gather(own):
            for name, value in values.items():
                total, so_far = sums.get(name, (0.0, 0))
                sums[name] = (total + value * weight, so_far + weight)
        return {name: total / weight if weight else total for name, (total, weight) in sums.items()}


def sizes_of(batches: Sequence[Any]) -> Tensor:
    """(number of batches,) float64: the weight of each in a mean over batches."""
    return torch.tensor([batch.weight for batch in batches], dtype=torch.float64)


def validated(output: ModelOutput) -> dict[str, Tensor]:
    """The validation metrics of a batch; scale and bias of the logits are none."""
    values = {f"val_{name}": value for name, value in output.logs.items() if not name.startswith("logit_")}
    return {**values, "val_loss": output.loss.detach()}
