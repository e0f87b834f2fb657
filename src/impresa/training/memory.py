"""Memory of a training by what holds it: weights, gradients, optimizer, and the activations of a step."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from impresa.training.state import TrainState


@dataclass(frozen=True)
class Memory:
    """Bytes of one process."""

    weights: int
    """And buffers."""
    gradients: int
    optimizer: int
    """States, such as the moments of Adam."""
    average: int
    """Of the weights (`optimization.ema_decay`)."""
    activations: int | None
    """Most bytes that forward and backward pass of a step hold beside the gradients; None: not measured."""

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.average + (self.activations or 0)

    def divided(self, num_processes: int) -> Memory:
        """The same model whose weights, gradients and states are spread over processes (fsdp); the block that is whole
        at the time is left out."""
        spread = {name: -(-getattr(self, name) // num_processes) for name in ("weights", "gradients", "optimizer")}
        return replace(self, **spread)


def memory_of(state: TrainState, activations: int | None) -> Memory:
    """The memory of a state that has made a step, on the device where it lies."""
    model = state.model
    return Memory(
        weights=num_bytes([*model.parameters(), *model.buffers()]),
        gradients=sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad),
        optimizer=num_bytes(state.optimizer.state_dict()["state"]),
        average=0 if state.average is None else num_bytes(state.average.state_dict()),
        activations=activations,
    )


def num_bytes(values: Any) -> int:
    """Bytes of all tensors in some values, each storage once."""
    found: dict[int, int] = {}
    for tensor in _tensors(values):
        storage = tensor.untyped_storage()
        found[storage.data_ptr() or id(storage)] = storage.nbytes()
    return sum(found.values())


def _tensors(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, Mapping | list | tuple):
        for value in values.values() if isinstance(values, Mapping) else values:
            yield from _tensors(value)


class ActivationMeter(TorchDispatchMode):
    """Most bytes of new tensors that are held at once until the optimizer begins, gradients of weights left out.

    A storage counts from the operation that made it to its end, wherever it lies and whoever holds it, recomputed ones
    too. What an operation takes for itself in between is not seen.
    """

    def __init__(self, state: TrainState) -> None:
        super().__init__()
        self.most = 0
        self._held = 0
        self._storages: dict[int, tuple[weakref.ref[Any], int]] = {}
        self._state = state
        self._counts = False
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> Self:
        self._counts = True
        trained = [p for p in self._state.model.parameters() if p.requires_grad]
        self._hooks = [p.register_post_accumulate_grad_hook(self._leave_out_gradient) for p in trained]
        self._hooks.append(self._state.optimizer.register_step_pre_hook(lambda *_: self._stop()))
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._stop()
        for hook in self._hooks:
            hook.remove()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if self._counts:
            given = {_place(tensor) for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, Tensor)}
            for tensor in tree_leaves(out):
                if isinstance(tensor, Tensor) and _place(tensor) not in given:
                    self._hold(tensor)
        return out

    def _hold(self, tensor: Tensor) -> None:
        storage, place = tensor.untyped_storage(), _place(tensor)
        if place in self._storages or not place:
            return
        self._storages[place] = weakref.ref(storage, lambda _: self._release(place)), storage.nbytes()
        self._held += storage.nbytes()
        self.most = max(self.most, self._held)

    def _release(self, place: int) -> None:
        self._held -= self._storages.pop(place, (None, 0))[1]

    def _leave_out_gradient(self, parameter: nn.Parameter) -> None:
        if parameter.grad is not None and (place := _place(parameter.grad)) in self._storages:
            self._release(place)

    def _stop(self) -> None:
        self._counts = False
        self._storages.clear()


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
