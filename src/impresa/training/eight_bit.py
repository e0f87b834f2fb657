"""AdamW with moments of eight bits, by bitsandbytes (Dettmers et al. 2022, arXiv:2110.02861)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from impresa.decoders.quantization import INSTALL, hush_bitsandbytes
from impresa.errors import ConfigError
from impresa.hub import import_optional

KEY = "optimization.optimizer"


def adamw_in_eight_bits(groups: list[dict[str, Any]], settings: dict[str, Any]) -> torch.optim.Optimizer:
    """The optimizer of `groups`, those of `parameter_groups`.

    The moments of large weight matrices have eight bits. Those of norms, biases, embeddings, memory and logits, and of
    tensors below 4,096 numbers, stay in float32: the gradients of embeddings are uneven, and the others cost nothing.

    Raises:
        ConfigError: bitsandbytes cannot be imported.
    """
    kind = _kind()

    class AdamW8bit(kind):  # type: ignore[misc, valid-type]
        def get_config(self, gindex: int, pindex: int, group: dict[str, Any]) -> dict[str, Any]:
            config: dict[str, Any] = super().get_config(gindex, pindex, group)
            return {**config, "optim_bits": 32} if group["is_spared"] else config

    optimizer: torch.optim.Optimizer = AdamW8bit(groups, **settings)
    return optimizer


def check_eight_bits(device: torch.device) -> None:
    """Refuse a device on which the library has no such step (`ConfigError`)."""
    parameter = nn.Parameter(torch.zeros(64, 64, device=device))
    parameter.grad = torch.ones_like(parameter)
    try:
        _kind()([parameter]).step()
    except (RuntimeError, NotImplementedError, AttributeError) as error:
        fault = f"bitsandbytes has no adamw8bit for {device.type} ({' '.join(str(error).split())[:200]})"
        raise ConfigError(f"{KEY}: {fault}; use adamw") from error


def _kind() -> Any:
    hush_bitsandbytes()
    return import_optional(KEY, "bitsandbytes", INSTALL, user="adamw8bit").optim.AdamW8bit
