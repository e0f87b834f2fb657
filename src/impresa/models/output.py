"""What every model gives to the training."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass
class ModelOutput:
    """What a training step needs of a batch."""

    loss: torch.Tensor
    """Scalar with its graph."""
    logs: dict[str, torch.Tensor]
    """Detached scalars by name, `loss` among them."""
