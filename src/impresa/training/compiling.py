"""Towers compiled by `torch.compile` for the time of a training, whose names, weights and files stay as they are."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from impresa.config.experiment import Compile
from impresa.encoders.memory import MemoryTokens
from impresa.encoders.tower import Tower
from impresa.errors import ConfigError

logger = logging.getLogger(__name__)

KEY = "trainer.compile"
BACKEND = "inductor"
"""That of `torch.compile`; tests take one that needs no C++ compiler."""
MOST_VARIANTS = 64
"""Graphs of one function, after which torch would compile no more: blocks of several towers share one function, and
each has its own with and without gradients, masks, and padding."""


def check_compiler(how: Compile, device: torch.device) -> None:
    """Refuse to compile where torch cannot, by trying (`ConfigError`)."""
    if how == "off":
        return
    try:
        torch.compile(torch.sin, backend=BACKEND)(torch.ones(8, device=device))
    except Exception as error:  # of many kinds, by what is missing: a C++ compiler, Triton, a backend for the device
        cause = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        fault = f"torch cannot compile for {device.type} on this machine ({cause})"
        raise ConfigError(f"{KEY}: {fault}; install what it lacks (a C++ compiler, Triton), or use off") from error


def modules_to_compile(model: nn.Module, how: Compile) -> list[nn.Module]:
    """The blocks of all towers, or (`model`) their backbones whole.

    Raises:
        ConfigError: there is none, or one cannot be compiled.
    """
    towers = [module for module in model.modules() if isinstance(module, Tower)]
    if how == "off":
        return []
    if how == "model":
        memories = [module for module in model.modules() if isinstance(module, MemoryTokens)]
        if any(not memory.is_static for memory in memories):
            fault = "model would compile memory tokens, which count samples between the steps and were compiled at each"
            raise ConfigError(f"{KEY}: {fault}; use blocks")
        return [tower.backbone for tower in towers]
    blocks = [block for tower in towers for block in getattr(tower.backbone, "blocks", None) or ()]
    if not blocks:
        raise ConfigError(f"{KEY}: blocks, but no tower has a stack of equal blocks; use model or off")
    return blocks


@contextmanager
def compiled(model: nn.Module, how: Compile) -> Iterator[None]:
    """Let the towers run as compiled code, and say at the end how often that had to be compiled.

    Sizes that change, such as the length of the longest caption of a batch, are compiled once more as variables; not
    for each value.
    """
    modules = modules_to_compile(model, how)
    if not modules:
        yield
        return
    import torch._dynamo.convert_frame as frames  # takes seconds, and who compiles nothing should not wait for it

    before = dict(frames.FRAME_COMPILE_COUNTER)
    with torch._dynamo.config.patch(recompile_limit=MOST_VARIANTS):
        for module in modules:
            module.compile(backend=BACKEND)
        try:
            yield
        finally:
            for module in modules:
                module._compiled_call_impl = None  # evaluation and export see the plain model
            counts = [count - before.get(frame, 0) for frame, count in frames.FRAME_COMPILE_COUNTER.items()]
            logger.info(_told([count for count in counts if count]))


def _told(counts: list[int]) -> str:
    """One line about the numbers of graphs of each compiled function."""
    again = sum(counts) - len(counts)
    return f"{KEY}: compiled {sum(counts)} times: {len(counts)} functions, and {again} times anew for other inputs"
