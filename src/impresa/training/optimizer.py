"""The optimizer and its parameter groups."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from impresa.config.optimization import OptimizationConfig
from impresa.decoders.base import Decoder
from impresa.encoders.lora import is_adapter
from impresa.encoders.memory import MemoryTokens
from impresa.encoders.tower import Tower
from impresa.fusion import FusedEmbedding, Fusion
from impresa.losses.contrastive import ContrastiveLoss
from impresa.tasks.answering.squares import SquareMarks

DECAYED = (nn.Linear, _ConvNd, nn.MultiheadAttention)
"""Modules whose weight matrices decay."""

PARTS = ("", "pretrained", "memory", "logits", "fusion", "lora")
"""Parts that may have a learning rate of their own, after all that is none of them, in the order of their groups."""
SPARED = ("memory", "logits")
"""Those without weight decay."""
SPLIT_OFF = ("fusion", "lora")
"""Those that have groups of their own only where they have a rate of their own: checkpoints know parameters by number,
and older runs were numbered without these."""


def build_optimizer(model: nn.Module, config: OptimizationConfig) -> torch.optim.Optimizer:
    """The optimizer of the trainable parameters, with one group for each learning rate and weight decay.

    The fused implementation is used where there is one, except under 16-bit mixed precision, where gradients are
    clipped after they are unscaled and a fused optimizer would unscale them itself.
    """
    groups = list(parameter_groups(model, config))
    can_fuse = all(p.device.type in ("cuda", "cpu") and p.is_floating_point() for g in groups for p in g["params"])
    fused = config.precision != "16-mixed" and can_fuse
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.betas[0], fused=fused)
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=fused)


def parameter_groups(model: nn.Module, config: OptimizationConfig) -> Iterator[dict[str, Any]]:
    """The groups that have trainable parameters, each with its `name`, its `peak_lr` and the `key` that this is logged
    under; the learning rate itself is set before each step.

    Each of `PARTS` has the learning rate `lr_` and its name, or else `lr`. Weight decay is for the weight matrices of
    linear, convolution and attention layers. Norms, biases, embeddings, learned tokens, the whole memory, and the
    logits' scale and bias are spared.
    """
    part_of = {id(parameter): part for part, parameter in _parts(model)}
    rates = {part: _own_rate(part, model, config) for part in {*part_of.values()}}
    holders: dict[nn.Parameter, nn.Module] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if parameter.requires_grad:
                holders.setdefault(parameter, module)  # tied weights are those of the first module
    members: dict[tuple[str, bool], list[nn.Parameter]] = {
        (part, decays): [] for part in PARTS for decays in (True, False)
    }
    for parameter, module in holders.items():
        part = part_of.get(id(parameter), "")
        if part in SPLIT_OFF and rates[part] is None:
            part = ""
        decays = part not in SPARED and isinstance(module, DECAYED) and parameter.ndim >= 2
        members[part, decays].append(parameter)
    for (part, decays), parameters in members.items():
        if parameters:
            kind = "" if part in SPARED else "decay" if decays else "no_decay"
            name = "_".join(filter(None, (part, kind)))
            own = rates.get(part)
            peak, key = (config.lr, "lr") if own is None else (own, f"lr_{part}")
            decay = config.weight_decay if decays else 0.0
            yield {"params": parameters, "name": name, "key": key, "lr": peak, "peak_lr": peak, "weight_decay": decay}


def _own_rate(part: str, model: nn.Module, config: OptimizationConfig) -> float | None:
    """The peak of the learning rate of a part, if it is another one than `lr`."""
    rate: float | None = getattr(config, f"lr_{part}")
    if rate is None and part == "logits":
        factor = max(loss.kind.lr_scale for loss in model.modules() if isinstance(loss, ContrastiveLoss))
        return None if factor == 1 else config.lr * factor
    return rate


def _parts(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Each parameter of the parts that may have a learning rate of their own; of two parts the later has it, which lies
    inside the other."""
    for module in model.modules():
        match module:
            case Tower():
                yield from (("pretrained", parameter) for parameter in module.pretrained_parameters())
            case MemoryTokens():
                yield from (("memory", parameter) for parameter in module.parameters())
            case ContrastiveLoss():
                yield from (("logits", parameter) for parameter in module.parameters())
            case Fusion() | FusedEmbedding() | SquareMarks():
                yield from (("fusion", parameter) for parameter in module.parameters())
            case Decoder():
                named = module.named_parameters()
                yield from (("lora", parameter) for name, parameter in named if is_adapter(name))
