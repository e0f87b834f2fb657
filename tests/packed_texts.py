"""Helpers of the tests of packed texts: lengths with their own traps, an encoder's gradients, and a count of tokens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from impresa.encoders.output import EncoderOutput
from impresa.encoders.text import TextEncoder

LENGTHS = {
    "one, full and equal": (3, 9, 5, 1, 5),
    "all full": (9, 9, 9),
    "single tokens": (1, 1),
    "one alone": (4,),
    "an empty text": (2, 0, 9),
}


def encoded(
    model: TextEncoder, ids: Tensor, mask: Tensor | None, **options: Any
) -> tuple[EncoderOutput, dict[str, Tensor]]:
    """The output for texts (B, T), and the gradients of a sum of it with fixed weights."""
    model.zero_grad(set_to_none=True)
    output = model(ids, mask, **options)
    weights = torch.randn(output.pooled.shape, generator=torch.Generator().manual_seed(2))
    (output.pooled * weights).sum().backward()
    return output, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_close_in_norm(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """Each tensor is there, and differs by at most `tolerance` of its norm, or of a hundredth of the largest one, for
    some are zero but for rounding."""
    assert found.keys() == expected.keys()
    least = max(float(tensor.norm()) for tensor in expected.values()) / 100
    for name, tensor in expected.items():
        assert (found[name] - tensor).norm() <= tolerance * max(float(tensor.norm()), least), name


@contextmanager
def counting(model: nn.Module) -> Iterator[dict[str, int]]:
    """Tokens that each linear layer computes."""
    tokens: dict[str, int] = {}

    def count(name: str) -> Any:
        return lambda _, __, output: tokens.update({name: output.numel() // output.shape[-1]})

    linears = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    hooks = [module.register_forward_hook(count(name)) for name, module in linears]
    yield tokens
    for hook in hooks:
        hook.remove()
