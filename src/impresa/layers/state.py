"""The trained part of a module's state."""

from __future__ import annotations

from torch import Tensor, nn


def trained_state(module: nn.Module) -> dict[str, Tensor]:
    """The state dict without frozen parameters, and without the entries that quantisation keeps beside them."""
    parameters = module.named_parameters(remove_duplicate=False)  # an LM head may be tied to a frozen table
    frozen = tuple(name for name, parameter in parameters if not parameter.requires_grad)
    beside = tuple(f"{name}." for name in frozen)
    return {
        name: tensor
        for name, tensor in module.state_dict().items()
        if name not in set(frozen) and not name.startswith(beside)
    }
