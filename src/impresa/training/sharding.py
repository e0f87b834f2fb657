"""A model shared out over the processes (`trainer.strategy: fsdp`), by torch's `fully_shard`.

Each process keeps a part of every weight, of its gradient and of what the optimizer knows of it. Blocks are gathered
when they compute, each tower, fusion and decoder around them likewise. Whole in every process stay the loss, whose few
numbers all of them need, memory tokens, which write into themselves, and single numbers, which have no parts.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.nn.modules.batchnorm import _BatchNorm

from impresa.decoders.base import Decoder
from impresa.decoders.recursion import RecursionHead
from impresa.encoders.memory import MemoryTokens
from impresa.encoders.tower import Tower
from impresa.errors import ConfigError
from impresa.layers.perceiver import PerceiverStack
from impresa.losses.contrastive import ContrastiveLoss
from impresa.training.shared import is_shared, part_of

if TYPE_CHECKING:
    from impresa.training.distributed import Group

KEY = "trainer.strategy"
LEAST_TORCH = (2, 13)
"""Older releases find no gradients in outputs that are dataclasses."""
# Nothing here is written to in place, which is what torch warns of.
_VIEWS = r"FSDP2-wrapped module .* returned a view tensor"


def check_can_share(model: nn.Module) -> None:
    """Refuse a model that would not train as on one process.

    Raises:
        ConfigError: says why.
    """
    found = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if found < LEAST_TORCH:
        least = ".".join(map(str, LEAST_TORCH))
        raise ConfigError(f"{KEY}: fsdp needs torch {least}, and this is {torch.__version__}; update it, or use ddp")
    model.train()
    for name, part in model.named_children():
        if any(isinstance(module, _BatchNorm) and module.training for module in part.modules()):
            fault = f"{name} trains with batch norms, whose running means fsdp leaves different in each process"
            raise ConfigError(f"{KEY}: {fault}; set {name}.freeze=true, or use ddp")


def share_out(model: nn.Module, group: Group) -> nn.Module:
    """Leave each process its part of the weights of the first process, on its device; returns the model itself."""
    warnings.filterwarnings("ignore", _VIEWS, UserWarning)
    mesh = init_device_mesh(group.device.type, (group.world_size,))
    whole = dict.fromkeys(_whole_parameters(model))
    for part in model.children():
        for unit in (*_units(part), part):
            _share_out(unit, mesh, whole, group.device)
        if isinstance(part, Tower):
            register_fsdp_forward_method(part, "read")
    for tensor in (*whole, *model.buffers()):
        _take_from_first(tensor, group.device)
    return model


def complete_gradients(parameters: Sequence[Tensor], max_norm: float, group: Group) -> Tensor:
    """Average the gradients of weights that each process has whole, and clip all to this norm; returns the norm before.

    Those of shared weights are averaged already.
    """
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    shared = [part_of(p.grad) for p in parameters if p.grad is not None and is_shared(p)]
    own = [p.grad for p in parameters if p.grad is not None and not is_shared(p)]
    sums = group.sums({str(number): gradient for number, gradient in enumerate(own)})
    for gradient, total in zip(own, sums.values(), strict=True):
        gradient.copy_(total / group.world_size)
    norm = (group.sum(_square(shared, group.device)) + _square(own, group.device)).sqrt()
    factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    for gradients in (shared, own):
        if gradients:
            torch._foreach_mul_(gradients, factor)
    return norm


def _whole_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    for module in model.modules():
        if isinstance(module, (ContrastiveLoss, MemoryTokens)):
            yield from module.parameters()
    yield from (parameter for parameter in model.parameters() if parameter.ndim == 0)


def _units(part: nn.Module) -> Iterator[nn.Module]:
    """The modules in a part of a model that are gathered one at a time, those inside others first. Each runs as a whole
    or not at all."""
    for module in part.modules():
        match module:
            case Tower():
                yield from getattr(module.backbone, "blocks", None) or ()
            case PerceiverStack():
                yield from module.layers
            case Decoder():
                yield from module.blocks
            case RecursionHead():
                yield module  # in float32 behind a language model of 16 bits


def _share_out(unit: nn.Module, mesh: DeviceMesh, whole: Collection[nn.Parameter], device: torch.device) -> None:
    own = [parameter for parameter in unit.parameters() if not is_shared(parameter) and parameter not in whole]
    for parameter in own:
        _take_from_first(parameter, device)
    if own:
        # After each pass, those around the blocks too: an evaluation changes the weights for a while (`ema_decay`).
        fully_shard(unit, mesh=mesh, reshard_after_forward=True, ignored_params=set(whole))


def _take_from_first(tensor: Tensor, device: torch.device) -> None:
    """Move a tensor to the device, and give it the value that it has in the first process."""
    tensor.data = tensor.data.to(device).contiguous()
    distributed.broadcast(tensor.data, src=0)


def _square(tensors: list[Tensor], device: torch.device) -> Tensor:
    """The squared norm of all of them together."""
    if not tensors:
        return torch.zeros((), device=device)
    norms = torch._foreach_norm(tensors, 2, dtype=torch.float32)
    return torch.stack(norms).square().sum()
