"""The trained part of a module's state."""

from __future__ import annotations

from torch import Tensor, nn


def trained_state(module: nn.Module) -> dict[str, Tensor]:
    """The state dict without frozen parameters, and without the entries that quantisation keeps beside them."""
    parameters = module.named_parameters(remove_duplicate=False)  # an LM head may be tied to a frozen table
    frozen = {name for name, parameter in parameters if not parameter.requires_grad}
    beside, state = tuple(f"{name}." for name in frozen), module.state_dict()
    return {name: value for name, value in state.items() if name not in frozen and not name.startswith(beside)}
