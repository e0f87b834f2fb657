"""The average of the weights over the steps of a training run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


class WeightAverage:
    """Exponential moving average of a module's trainable parameters (Polyak and Juditsky 1992, as used by the Tiny
    Recursive Model and most diffusion models): steadier than the last weights, at the cost of one copy of them.

    In the first steps the average forgets faster, so that it does not drag the random start along: step t keeps
    min(decay, t / (t + 9)) of it. Buffers are not averaged. At 16 bits most of its steps would be rounded away, so it
    is kept in float32 or finer whatever the module is.

    torch's `swa_utils` copies the whole module instead, frozen language models included, in the module's own type.

    Args:
        module: whose parameters are averaged; it starts as their copy.
        decay: share of the average that a step keeps.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self._current = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self._average = {
            name: p.detach().to(torch.promote_types(p.dtype, torch.float32), copy=True)
            for name, p in self._current.items()
        }
        self._aside: dict[str, Tensor] = {}
        """The module's own weights while the average is in their place."""

    def update(self, step: int) -> None:
        """Take up the weights after optimizer step number `step`, from 1."""
        keep = min(self.decay, step / (step + 9))
        self._follow_device()
        now = [p.detach().to(self._average[name].dtype) for name, p in self._current.items()]
        torch._foreach_lerp_(list(self._average.values()), now, 1 - keep)

    def swap(self) -> None:
        """Give the module the average in place of its weights; a second call puts those back."""
        if self._aside:
            weights, self._aside = self._aside, {}
        else:
            weights, self._aside = self._average, {name: p.detach().clone() for name, p in self._current.items()}
        copy_weights(weights, self._current)

    def state_dict(self) -> dict[str, Tensor]:
        """The average by parameter name."""
        return dict(self._average)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        copy_weights(state, self._average)

    def _follow_device(self) -> None:
        for name, parameter in self._current.items():
            if self._average[name].device != parameter.device:
                self._average[name] = self._average[name].to(parameter.device)


def copy_weights(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    """Write into each tensor of `target` the one of its name in `source`, whatever their types and devices are."""
    with torch.no_grad():
        for name, tensor in target.items():
            tensor.copy_(source[name])
