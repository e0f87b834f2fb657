"""Low-rank adapters (LoRA, Hu et al. 2021) by peft: in the blocks of a tower, and what a decoder's share with them."""

from __future__ import annotations

from typing import Any

from torch import nn

from impresa.config.decoder import LoraConfig, TowerLoraConfig
from impresa.config.types import listed_names
from impresa.errors import ConfigError
from impresa.hub import import_optional

ALL_LINEAR = "all-linear"
"""For `target_modules`: every linear layer of the blocks."""
ADAPTER = "default"
"""peft's name of the one adapter that a model gets."""


def add_adapters(blocks: nn.Module, config: TowerLoraConfig, key: str) -> None:
    """Put adapters into the blocks of a tower, in place; they start as the identity.

    Args:
        blocks: the stack of blocks.
        config: the adapters' settings, which `key` holds.
        key: for messages.

    Raises:
        ConfigError: peft cannot be imported, or the blocks have no layer of a target's name.
    """
    peft = import_optional(key, "peft", "peft")
    chosen, linears = target_names(config), linear_layers(blocks)
    check_targets(chosen, linears, f"{key}.target_modules")
    targets = [name for name in linears if chosen == ALL_LINEAR or name.rpartition(".")[2] in chosen]
    peft.inject_adapter_in_model(peft.LoraConfig(target_modules=targets, **settings(config)), blocks, ADAPTER)


def settings(config: LoraConfig) -> dict[str, Any]:
    """The arguments of peft's `LoraConfig`, but for its `target_modules`."""
    return {"r": config.r, "lora_alpha": config.alpha, "lora_dropout": config.dropout, "bias": "none"}


def target_names(config: LoraConfig) -> list[str] | str:
    """As peft takes them: it would read one name that is no list as a pattern of whole paths."""
    names = listed_names(config.target_modules)
    return ALL_LINEAR if names == [ALL_LINEAR] else names


def linear_layers(module: nn.Module) -> list[str]:
    """The names of all linear layers, paths included; `Conv1D` is what GPT-2 calls them."""
    layers = module.named_modules()
    return [name for name, layer in layers if isinstance(layer, nn.Linear) or type(layer).__name__ == "Conv1D"]


def check_targets(targets: list[str] | str, linears: list[str], key: str) -> None:
    """Refuse targets that are no layers: peft itself checks only that one of them is."""
    if targets == ALL_LINEAR:
        return
    layers = {name.rpartition(".")[2] for name in linears}
    unknown = [target for target in targets if target not in layers]
    if unknown or not targets:
        wrong = f"no linear layer of the blocks is called {unknown[0]}" if unknown else "it is empty"
        raise ConfigError(f"{key}: {wrong}; choose among {', '.join(sorted(layers))}, or {ALL_LINEAR}")


def is_adapter(name: str) -> bool:
    """True if the parameter of this name belongs to an adapter."""
    return "lora_" in name  # peft puts it into the names of an adapter's parameters, and transformers into no other
