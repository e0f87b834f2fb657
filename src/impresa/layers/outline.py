"""Modules without memory: names, shapes and types of what a model would hold, before any of it is allocated."""

from __future__ import annotations

import threading
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module
from torch.overrides import TorchFunctionMode

from impresa.errors import CheckpointError

_DRAWS = frozenset({"normal_", "uniform_", "kaiming_uniform_", "trunc_normal_"})


class TooLargeError(CheckpointError):
    """More is built than was allowed; the message is the reason alone."""


class _Undrawn(TorchFunctionMode):
    """Leaves random starts out: without memory they draw nothing, but torch would import half of itself for them."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        named: dict[str, Any] = kwargs or {}
        if func.__name__ in _DRAWS and (tensor := args[0] if args else named["tensor"]).is_meta:
            return tensor
        return func(*args, **named)


def is_outlined() -> bool:
    """True within an `outline`: nothing is to be read then."""
    return torch.get_default_device().type == "meta"


@contextmanager
def outline(max_tensors: int, max_numbers: int) -> Iterator[None]:
    """A block whose modules have parameters and buffers without memory, on torch's `meta` device.

    Args:
        max_tensors: parameters and buffers that may be registered in it, those that are dropped again included.
        max_numbers: numbers in them.

    Raises:
        TooLargeError: as soon as there are more.
    """
    tensors = numbers = 0
    thread = threading.get_ident()  # the hooks are those of the whole process

    def count(_module: nn.Module, _name: str, tensor: Tensor | None) -> None:
        nonlocal tensors, numbers
        if tensor is None or not tensor.is_meta or threading.get_ident() != thread:
            return
        tensors, numbers = tensors + 1, numbers + tensor.numel()
        if tensors > max_tensors or numbers > max_numbers:
            raise TooLargeError(f"it describes more than {max_tensors:,} tensors or {max_numbers:,} numbers")

    hooks = (
        module.register_module_parameter_registration_hook(count),
        module.register_module_buffer_registration_hook(count),
    )
    try:
        with torch.device("meta"), _Undrawn():
            yield
    finally:
        for hook in hooks:
            hook.remove()


def every_tensor(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by all of their names."""
    parameters = model.named_parameters(remove_duplicate=False)
    return {**dict(parameters), **dict(model.named_buffers(remove_duplicate=False))}


def is_complete(model: nn.Module, names: Container[str]) -> bool:
    """True if an outlined model needs no memory but for the tensors of `names`, and none of them has two names."""
    empty = {name: tensor for name, tensor in every_tensor(model).items() if tensor.is_meta}
    return all(name in names for name in empty) and len({id(tensor) for tensor in empty.values()}) == len(empty)
