"""The groups of parameters that share a learning rate, a weight decay and a rule of the optimizer."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd

from impresa.config.optimization import OptimizationConfig
from impresa.decoders.base import Decoder
from impresa.encoders.lora import is_adapter
from impresa.encoders.memory import MemoryTokens
from impresa.encoders.tower import Tower
from impresa.errors import ConfigError
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
LOWEST_RATE = "lr_lowest_layer"
"""Under this key the rate of the lowest trained layer is logged, where layers have different ones."""
_IN_A_STACK = re.compile(r"\.\d+\.")


@dataclass(frozen=True, order=True)
class _Place:
    """What decides the group of a parameter; groups have the order of their places."""

    part: int
    below: int
    """Blocks between it and the top of its tower."""
    is_spared: bool
    """Weight decay and eight bits leave it alone."""
    is_of_muon: bool

    @property
    def name(self) -> str:
        part = PARTS[self.part]
        below = f"below_top_{self.below}" if self.below else ""
        kind = "" if part in SPARED else "no_decay" if self.is_spared else "muon" if self.is_of_muon else "decay"
        return "_".join(filter(None, (part, below, kind)))


def parameter_groups(model: nn.Module, config: OptimizationConfig) -> Iterator[dict[str, Any]]:
    """The groups that have trainable parameters, each with its `name`, its `peak_lr`, the `lr_scale` of that by
    `layer_decay` and the `key` that the rate is logged under, if it is; the learning rate is set before each step.

    Each of `PARTS` has the learning rate `lr_` and its name, or else `lr`. Weight decay is for the weight matrices of
    linear, convolution and attention layers. Norms, biases, embeddings, learned tokens, the whole memory, and the
    logits' scale and bias are spared.

    Raises:
        ConfigError: `layer_decay` or the optimizer has nothing to act on in this model.
    """
    part_of = {id(parameter): part for part, parameter in _parts(model)}
    rates = {part: _own_rate(part, model, config) for part in {*part_of.values()}}
    below = _blocks_above(model) if config.layer_decay != 1 else {}
    members: dict[_Place, list[nn.Parameter]] = defaultdict(list)
    for name, parameter, module in _trained(model):
        part = part_of.get(id(parameter), "")
        if part in SPLIT_OFF and rates[part] is None:
            part = ""
        decays = part not in SPARED and isinstance(module, DECAYED) and parameter.ndim >= 2
        of_muon = config.optimizer == "muon" and decays and _is_matrix_of_a_block(name, parameter)
        above = below.get(id(parameter), 0) if part == "pretrained" else 0
        members[_Place(PARTS.index(part), above, not decays, of_muon)].append(parameter)
    _check_effects(config, list(members))
    lowest = max((place.below for place in members), default=0)
    for place, parameters in sorted(members.items(), key=lambda item: item[0]):
        own = rates.get(PARTS[place.part])
        peak, key = (config.lr, "lr") if own is None else (own, f"lr_{PARTS[place.part]}")
        yield {
            "params": parameters,
            "name": place.name,
            "key": key if place.below == 0 else LOWEST_RATE if place.below == lowest else None,
            "lr": peak,
            "peak_lr": peak,
            "lr_scale": config.layer_decay**place.below,
            "weight_decay": 0.0 if place.is_spared else config.weight_decay,
            "is_spared": place.is_spared,
            "is_of_muon": place.is_of_muon,
        }


def _trained(model: nn.Module) -> Iterator[tuple[str, nn.Parameter, nn.Module]]:
    """Name, parameter and module of all that is trained; tied weights are those of the first module."""
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(prefix, recurse=False):
            if parameter.requires_grad and id(parameter) not in seen:
                seen.add(id(parameter))
                yield name, parameter, module


def _is_matrix_of_a_block(name: str, parameter: nn.Parameter) -> bool:
    """True for matrices inside a stack of layers, where Muon is at home: not for what leads into the stack or out of it
    (embeddings, heads), nor for adapters, which are factors of a matrix."""
    return parameter.ndim == 2 and _IN_A_STACK.search(name) is not None and not is_adapter(name)


def _check_effects(config: OptimizationConfig, places: list[_Place]) -> None:
    if config.optimizer == "muon" and not any(place.is_of_muon for place in places):
        fault = "muon is for the matrices of blocks, and nothing that is trained is one"
        raise ConfigError(f"optimization.optimizer: {fault}; use adamw")
    if config.layer_decay != 1 and not any(place.below for place in places):
        fault = f"{config.layer_decay:g} needs trained layers below the last block of a pretrained tower"
        raise ConfigError(f"optimization.layer_decay: {fault}, and there are none; leave it out")


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


def _blocks_above(model: nn.Module) -> dict[int, int]:
    """By the id of each parameter of a tower's backbone, the number of blocks that stand above it.

    A backbone registers what leads to its blocks before them (embeddings, which have all blocks above them), and what
    follows after them (the last norm, with none).
    """
    above: dict[int, int] = {}
    for tower in model.modules():
        blocks = list(getattr(tower.backbone, "blocks", None) or ()) if isinstance(tower, Tower) else []
        own = {id(p): len(blocks) - n for n, block in enumerate(blocks, start=1) for p in block.parameters()}
        number = len(blocks)
        for parameter in tower.backbone.parameters() if blocks else ():  # type: ignore[union-attr]
            number = 0 if id(parameter) in own else number
            above[id(parameter)] = own.get(id(parameter), number)
    return above
