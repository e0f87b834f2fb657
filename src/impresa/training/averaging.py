"""The average of the weights over the steps of a training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


class WeightAverage:
    """Exponential moving average of a module's trainable parameters (Polyak and Juditsky 1992, as used by the Tiny
    Recursive Model and most diffusion models): steadier than the last weights, at the cost of one copy of them.

    In the first steps the average forgets faster, so that it does not drag the random start along: step t keeps
    min(decay, t / (t + 9)) of it. Buffers are not averaged.

    Args:
        module: whose parameters are averaged; it starts as their copy.
        decay: share of the average that a step keeps.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self._current = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self._average = {name: p.detach().clone() for name, p in self._current.items()}

    def update(self, step: int) -> None:
        """Take up the weights after optimizer step number `step`, from 1."""
        keep = min(self.decay, step / (step + 9))
        self._follow_device()
        now = [p.detach() for p in self._current.values()]
        torch._foreach_lerp_(list(self._average.values()), now, 1 - keep)

    def swap(self) -> None:
        """Exchange the module's weights and the average; a second call puts both back."""
        self._follow_device()
        with torch.no_grad():
            for name, parameter in self._current.items():
                kept = parameter.detach().clone()
                parameter.copy_(self._average[name])
                self._average[name].copy_(kept)

    def state_dict(self) -> dict[str, Tensor]:
        """The average by parameter name."""
        return dict(self._average)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        for name, average in self._average.items():
            average.copy_(state[name])

    def _follow_device(self) -> None:
        for name, parameter in self._current.items():
            if self._average[name].device != parameter.device:
                self._average[name] = self._average[name].to(parameter.device)
