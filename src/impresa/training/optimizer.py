"""The optimizer and its parameter groups."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from impresa.config.experiment import OptimizationConfig
from impresa.encoders.memory import MemoryTokens
from impresa.encoders.tower import Tower
from impresa.losses.contrastive import ContrastiveLoss

DECAYED = (nn.Linear, _ConvNd, nn.MultiheadAttention)
"""Modules whose weight matrices decay."""

GROUPS = ("decay", "no_decay", "pretrained_decay", "pretrained_no_decay", "memory", "logits")


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
    """Those of `GROUPS` that have trainable parameters, each with its `name` and its `peak_lr`; the learning rate
    itself is set before each step.

    Weight decay is for the weight matrices of linear, convolution and attention layers. Norms, biases, embeddings,
    learned tokens, the whole memory, and the logits' scale and bias are spared. Pretrained towers, the memory and the
    logits have learning rates of their own.
    """
    memory = {id(p) for m in model.modules() if isinstance(m, MemoryTokens) for p in m.parameters()}
    pretrained = {id(p) for m in model.modules() if isinstance(m, Tower) for p in m.pretrained_parameters()}
    logits = {id(p) for loss in _losses(model) for p in loss.parameters()}
    members: dict[str, list[nn.Parameter]] = {name: [] for name in GROUPS}
    for module, parameter in _trainable(model):
        name = "decay" if isinstance(module, DECAYED) and parameter.ndim >= 2 else "no_decay"
        if id(parameter) in memory:
            name = "memory"
        elif id(parameter) in logits:
            name = "logits"
        elif id(parameter) in pretrained:
            name = f"pretrained_{name}"
        members[name].append(parameter)
    for name, parameters in members.items():
        if parameters:
            peak = _peak_lr(name, config, model)
            decay = config.weight_decay if name in ("decay", "pretrained_decay") else 0.0
            yield {"params": parameters, "name": name, "lr": peak, "peak_lr": peak, "weight_decay": decay}


def _peak_lr(group: str, config: OptimizationConfig, model: nn.Module) -> float:
    if group == "logits":
        scale = max((loss.kind.lr_scale for loss in _losses(model)), default=1.0)
        return config.lr_logits or scale * config.lr
    pretrained = dict.fromkeys(("pretrained_decay", "pretrained_no_decay"), config.lr_pretrained)
    return {"memory": config.lr_memory, **pretrained}.get(group) or config.lr


def _losses(model: nn.Module) -> Iterator[ContrastiveLoss]:
    return (module for module in model.modules() if isinstance(module, ContrastiveLoss))


def _trainable(model: nn.Module) -> Iterator[tuple[nn.Module, nn.Parameter]]:
    """Each trainable parameter once, with the module that holds it."""
    seen: set[int] = set()
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if parameter.requires_grad and id(parameter) not in seen:
                seen.add(id(parameter))
                yield module, parameter
