"""Numbers of the computation (`optimization.precision`): full, mixed with 16 bits, or weights of 16 bits."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from impresa.config.experiment import Precision as PrecisionName
from impresa.decoders.base import Decoder

logger = logging.getLogger(__name__)


class Precision:
    """One precision on one kind of device.

    Args:
        name: the precision; `16-mixed` is `bf16-mixed` on a CPU.
        device: where the computation takes place.
    """

    def __init__(self, name: PrecisionName, device: torch.device) -> None:
        if name == "16-mixed" and device.type == "cpu":
            logger.warning("optimization.precision: a CPU mixes with bfloat16; 16-mixed is taken for bf16-mixed")
            name = "bf16-mixed"
        self._device_type = device.type
        self._mixed = {"16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}.get(name)
        self._has_bfloat16_weights = name == "bf16-true"
        self.scaler = torch.amp.GradScaler(device.type) if name == "16-mixed" else None
        """Scales losses so that small gradients survive in float16; None where that is not needed."""

    def autocast(self) -> AbstractContextManager[Any]:
        """The context of a forward pass."""
        if self._mixed is None:
            return nullcontext()
        return torch.autocast(self._device_type, dtype=self._mixed, cache_enabled=False)

    def prepare_model(self, model: nn.Module) -> None:
        """Give the weights their type."""
        if self._has_bfloat16_weights:
            cast_weights(model)

    def prepare_batch(self, batch: Any) -> Any:
        """The batch, with images and sounds in the type of the weights."""
        if not self._has_bfloat16_weights:
            return batch
        return replace(batch, image=_in_bfloat16(batch.image), audio=_in_bfloat16(batch.audio))


def cast_weights(module: nn.Module) -> None:
    """Make bfloat16 of weights and stored buffers, except for those that a decoder wants in full precision. Computed
    buffers stay as they are."""
    decoders = (part for part in module.modules() if isinstance(part, Decoder))
    precise = {id(tensor) for decoder in decoders for tensor in decoder.full_precision_parameters()}
    stored = module.state_dict().keys()
    buffers = [buffer for name, buffer in module.named_buffers() if name in stored]
    for tensor in (*module.parameters(), *buffers):
        if tensor.is_floating_point() and id(tensor) not in precise:
            tensor.data = tensor.data.bfloat16()


def _in_bfloat16(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.bfloat16()
