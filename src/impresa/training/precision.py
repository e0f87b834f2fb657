"""Training with weights of 16 bits (`optimization.precision=bf16-true`)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from lightning.pytorch.plugins.precision import Precision
from torch import Tensor, nn

from impresa.decoders.lora import is_adapter
from impresa.decoders.recursion import RecursionHead


class BFloat16Weights(Precision):
    """Holds weights, activations and pixels in bfloat16.

    Lightning's own plugin for it (`HalfPrecision`) cannot be used here: it walks into batches and stops at what the
    dialogues are made of, and it makes bfloat16 of all floats: of what is trained beside a frozen language model, of
    the frequencies of rotary positions, and of each number that a step computes.
    """

    precision = "bf16-true"

    def convert_module(self, module: nn.Module) -> nn.Module:
        """Make bfloat16 of weights and stored buffers, but not of adapters and of recursion behind a language model:
        they are small, and their steps would be rounded away. Computed buffers stay too."""
        precise = {id(tensor) for tensor in _precise_parameters(module)}
        stored = module.state_dict().keys()
        buffers = [buffer for name, buffer in module.named_buffers() if name in stored]
        for tensor in (*module.parameters(), *buffers):
            if tensor.is_floating_point() and id(tensor) not in precise:
                tensor.data = tensor.data.bfloat16()
        return module

    def convert_input(self, data: Any) -> Any:
        """A batch, or the list of batches of a step, with images and sounds in bfloat16."""
        if isinstance(data, list):
            return [self.convert_input(batch) for batch in data]
        return replace(data, image=_in_bfloat16(data.image), audio=_in_bfloat16(data.audio))


def _precise_parameters(module: nn.Module) -> Iterator[Tensor]:
    for part in module.modules():
        if isinstance(part, RecursionHead):
            yield from (*part.parameters(), *part.buffers())
    yield from (parameter for name, parameter in module.named_parameters() if is_adapter(name))


def _in_bfloat16(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.bfloat16()
