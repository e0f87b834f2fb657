"""The trained part of a module's state."""

from __future__ import annotations

from torch import Tensor, nn


def trained_state(module: nn.Module) -> dict[str, Tensor]:
    """The state dict without frozen parameters, and without the entries that quantisation keeps beside them."""
    parameters = module.named_parameters(remove_duplicate=False)  # an LM head may be tied to a frozen table
    kept = {name for name, parameter in parameters if parameter.requires_grad}
    kept |= {name for name, _ in module.named_buffers(remove_duplicate=False)}
    return {name: value for name, value in module.state_dict().items() if name in kept}
