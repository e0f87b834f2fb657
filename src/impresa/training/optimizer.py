"""The optimizer and its parameter groups."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from impresa.config.optimization import OptimizationConfig
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
    modules = list(model.modules())
    losses = [module for module in modules if isinstance(module, ContrastiveLoss)]
    logits = {id(p) for loss in losses for p in loss.parameters()}
    memory = {id(p) for module in modules if isinstance(module, MemoryTokens) for p in module.parameters()}
    pretrained = {id(p) for module in modules if isinstance(module, Tower) for p in module.pretrained_parameters()}
    holders: dict[nn.Parameter, nn.Module] = {}
    for module in modules:
        for parameter in module.parameters(recurse=False):
            if parameter.requires_grad:
                holders.setdefault(parameter, module)  # tied weights are those of the first module
    members: dict[str, list[nn.Parameter]] = {name: [] for name in GROUPS}
    for parameter, module in holders.items():
        name = "decay" if isinstance(module, DECAYED) and parameter.ndim >= 2 else "no_decay"
        if id(parameter) in memory:
            name = "memory"
        elif id(parameter) in logits:
            name = "logits"
        elif id(parameter) in pretrained:
            name = f"pretrained_{name}"
        members[name].append(parameter)
    lr_logits = config.lr_logits or config.lr * max((loss.kind.lr_scale for loss in losses), default=1.0)
    own = {"memory": config.lr_memory, "logits": lr_logits}
    own |= dict.fromkeys(("pretrained_decay", "pretrained_no_decay"), config.lr_pretrained)
    for name, parameters in members.items():
        if parameters:
            peak = own.get(name) or config.lr
            decay = config.weight_decay if name in ("decay", "pretrained_decay") else 0.0
            yield {"params": parameters, "name": name, "lr": peak, "peak_lr": peak, "weight_decay": decay}
