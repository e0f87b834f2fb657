"""Four bits for a frozen language model: NF4 with double quantisation (QLoRA, Dettmers et al. 2023), by bitsandbytes.

Only the linear layers of the blocks are quantised: an error in embeddings, LM head or norms would reach every token.
"""

from __future__ import annotations

import logging
import math
from typing import Any

import torch
from torch import nn

from impresa.config.optimization import Precision
from impresa.errors import ConfigError
from impresa.hub import import_optional

KEY = "decoder.load_in_4bit"
INSTALL = "'impresa[qwen]'"
"""Argument of pip for the libraries of four bits and adapters."""
BLOCK = 64
"""Weights that share a scale."""


def quantization_config(precision: Precision) -> Any:
    """The settings with which transformers' `from_pretrained` loads a model in NF4: the libraries' own defaults are
    FP4, no double quantisation and float32.

    Raises:
        ConfigError: bitsandbytes or accelerate cannot be imported.
    """
    hush_bitsandbytes()
    for package in ("bitsandbytes", "accelerate"):
        import_optional(KEY, package, INSTALL)
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype(precision),
        llm_int8_skip_modules=["lm_head"],
    )


def hush_bitsandbytes() -> None:
    """Silence the library's request, at its import, for a package with kernels that we do not use."""
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


def compute_dtype(precision: Precision) -> torch.dtype:
    """The type that dequantised weights are multiplied in: the 16-bit type of the run's precision, else float32."""
    if precision.startswith("bf16"):
        return torch.bfloat16
    return torch.float16 if precision == "16-mixed" else torch.float32


def prepare_quantized(model: nn.Module, name: str) -> None:
    """Make quantised layers compute the same in evaluation as in training; `name` is the model's, for messages.

    On processors with bfloat16 instructions bitsandbytes repacks the weights at the first evaluation, then computes in
    bfloat16 whatever was asked for, and has no gradient from then on, in training neither.

    Raises:
        ConfigError: a layer's input width is no multiple of the block; on a CPU bitsandbytes would scale its rows by
            the blocks of others, without a warning.
    """
    for layer in quantized_layers(model):
        if layer.in_features % BLOCK:
            width = f"a layer of {name} reads {layer.in_features} features, which is no multiple of {BLOCK}"
            raise ConfigError(f"{KEY}: {width} and would be quantised wrongly; turn it off")
        layer.support_avx512bf16_for_cpu = False


def quantized_layers(model: nn.Module) -> list[Any]:
    """The four-bit linear layers of a model."""
    from bitsandbytes.nn import Linear4bit

    return [module for module in model.modules() if isinstance(module, Linear4bit)]


def num_weights(module: nn.Module, *, trainable: bool = False) -> int:
    """Weights of a module: each shared one once, four-bit ones by their number and not by their bytes.

    Args:
        module: any module.
        trainable: count only those that have a gradient.
    """
    return sum(map(_num_weights, (p for p in module.parameters() if p.requires_grad or not trainable)))


def _num_weights(parameter: nn.Parameter) -> int:
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else math.prod(state.shape)
