"""The weights of attention, collected while a model runs.

Attention is computed by kernels that never write its weights down. While they are recorded, hooks compute them beside
the forward pass; a model that nobody looks into has no hooks and does the same as ever.

Letters of shapes: B batch, H heads, Q queries, N tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from impresa.layers.attention import WeighingModule

Recorded = dict[nn.Module, list[Tensor]]
"""Weights (B, H, Q, N) float32 of each attention, one tensor for each of its calls, in order; H is 1 where a library
returns the mean of the heads alone."""


@contextmanager
def recording_attention(model: nn.Module) -> Iterator[Recorded]:
    """Collect the weights of every attention in `model`, in evaluation mode and without a cache, while this is open.

    Our own attention (`WeighingModule`) gives the outputs that it gives otherwise, to the bit. Models of transformers
    compute theirs the eager way meanwhile, which returns the weights and agrees up to rounding. Attention of other
    libraries, such as timm's, is not recorded.
    """
    recorded: Recorded = {}
    with ExitStack() as stack:
        stack.enter_context(_eager(model))
        for module in model.modules():
            hook = _keep_own if isinstance(module, WeighingModule) else _keep_returned
            stack.enter_context(module.register_forward_hook(partial(hook, recorded), with_kwargs=True))
        yield recorded


def weights_within(recorded: Recorded, part: nn.Module) -> list[Tensor]:
    """The recorded weights of all attention in a part of the model, in the order of its modules."""
    return [weights for module in part.modules() for weights in recorded.get(module, ())]


@torch.no_grad()
def _keep_own(
    recorded: Recorded, module: WeighingModule, inputs: tuple[Any, ...], options: dict[str, Any], _: Any
) -> None:
    recorded.setdefault(module, []).append(module.weights(*inputs, **options))


def _keep_returned(recorded: Recorded, module: nn.Module, _: tuple[Any, ...], __: dict[str, Any], output: Any) -> None:
    """From an attention that returns its weights as the second of two, as transformers' and PyTorch's do."""
    is_attention = type(module).__name__.endswith("Attention") and isinstance(output, tuple) and len(output) == 2
    if is_attention and isinstance(output[1], Tensor):
        weights = output[1].detach().float()
        recorded.setdefault(module, []).append(weights if weights.ndim == 4 else weights.unsqueeze(1))


@contextmanager
def _eager(model: nn.Module) -> Iterator[None]:
    """Let models of transformers compute attention the eager way for a while."""
    configs = {id(c): c for module in model.modules() if (c := getattr(module, "config", None)) is not None}
    known = [config for config in configs.values() if hasattr(config, "_attn_implementation_internal")]
    before = [config._attn_implementation_internal for config in known]
    try:
        for config in known:
            config._attn_implementation_internal = "eager"
        yield
    finally:
        for config, kind in zip(known, before, strict=True):
            config._attn_implementation_internal = kind
