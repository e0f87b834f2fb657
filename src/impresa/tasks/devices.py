"""The device that a model computes on: what the user asked for, if it can be had."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from impresa.errors import ConfigError

Device = torch.device | str | int
"""A device, its name, or the number of a GPU."""


@contextmanager
def cpu_by_default() -> Iterator[None]:
    """Let tensors of the block that name no device be on the CPU, whatever a user has told `torch.set_default_device`;
    also a decorator."""
    if torch.get_default_device().type == "cpu":
        yield  # each call of torch takes longer under a device that is set
        return
    with torch.device("cpu"):
        yield


@contextmanager
def float32_by_default() -> Iterator[None]:
    """Let tensors of the block that name no dtype be float32, whatever a user has told `torch.set_default_dtype`; also
    a decorator. Other threads see it too."""
    before = torch.get_default_dtype()
    if before == torch.float32:
        yield
        return
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def usable_device(device: Device | None, argument: str = "device") -> torch.device:
    """The device, once a tensor has been made on it; None stands for a GPU if there is one, else the CPU.

    Args:
        device: what the user asked for.
        argument: its name in the message.

    Raises:
        ConfigError: there is no such device here, or nothing can be computed on it.
    """
    if device is None:
        return _best_device()
    try:
        found = _named_device(device)
        if torch.zeros(1, device=found).is_meta:
            raise ValueError("it holds no numbers")
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:  # torch raises all of them
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{argument}: {device} cannot be used here ({reason}); give cpu, or leave it out") from error
    return found


def move(model: nn.Module, device: torch.device, before: torch.device) -> None:
    """Move a model to a device, all of it or nothing.

    Args:
        model: the model.
        device: where to.
        before: where the model is; what has been moved goes back there when the rest cannot be.

    Raises:
        ConfigError: the device has no room, or a part of the model cannot be moved.
    """
    try:
        model.to(device)
    except BaseException as error:
        model.to(before)
        if not isinstance(error, RuntimeError | ValueError | AssertionError):
            raise
        reason = str(error).splitlines()[0]
        fix = f"the model stays on {before}, so free memory there or give another device"
        raise ConfigError(f"device: the model cannot be moved to {device} ({reason}); {fix}") from error


def _named_device(device: Device) -> torch.device:
    if isinstance(device, str) and device.isdecimal():  # as the command line gives it
        device = int(device)
    if isinstance(device, torch.device | str):
        return torch.device(device)
    if isinstance(device, bool):
        raise TypeError("it is no device")
    number = operator.index(device)
    if number < 0:
        raise ValueError("a GPU's number is 0 or more")
    return torch.device(f"cuda:{number}")


def _best_device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
