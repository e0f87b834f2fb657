"""Fewer bits for a frozen language model, by bitsandbytes: four (NF4 with double quantisation: QLoRA, Dettmers et al.
2023, arXiv:2305.14314) or eight (LLM.int8, Dettmers et al. 2022, arXiv:2208.07339).

Only the linear layers of the blocks are quantised: an error in embeddings, LM head or norms would reach every token.
"""

from __future__ import annotations

import logging
import math
from typing import Any

import torch
from torch import nn

from impresa.config.decoder import DecoderConfig
from impresa.config.optimization import Precision
from impresa.errors import ConfigError
from impresa.hub import import_optional

KEY, KEY_8BIT = "decoder.load_in_4bit", "decoder.load_in_8bit"
INSTALL = "'impresa[qwen]'"
"""Argument of pip for the libraries of quantisation and adapters."""
BLOCK = 64
"""Weights that share a scale, of four bits."""
_LEAST_CAPABILITY = (7, 5)
"""Of a GPU of NVIDIA for products of eight-bit matrices (Turing)."""


def quantization_config(config: DecoderConfig, precision: Precision) -> Any:
    """The settings with which transformers' `from_pretrained` loads a model in NF4 or in eight bits: the libraries' own
    defaults for four are FP4, no double quantisation and float32. The LM head, whatever it is called, is left out.

    Raises:
        ConfigError: bitsandbytes or accelerate cannot be imported.
    """
    hush_bitsandbytes()
    for package in ("bitsandbytes", "accelerate"):
        import_optional(KEY_8BIT if config.load_in_8bit else KEY, package, INSTALL)
    from transformers import BitsAndBytesConfig

    if config.load_in_8bit:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype(precision),
    )


def hush_bitsandbytes() -> None:
    """Silence the library's request, at its import, for a package with kernels that we do not use, and its notice at
    each product of eight-bit weights that it computes in float16."""
    for name in ("backends.cpu.ops", "autograd._functions"):
        logging.getLogger(f"bitsandbytes.{name}").setLevel(logging.ERROR)


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


def int8_layers(model: nn.Module) -> list[Any]:
    """The eight-bit linear layers of a model; looking for them imports nothing, and peft's layers around them, which
    have the same name, are none."""
    linear = (module for module in model.modules() if isinstance(module, nn.Linear))
    return [module for module in linear if type(module).__name__ == "Linear8bitLt"]


def follow_weights(model: nn.Module) -> None:
    """Put what eight-bit layers know of their weights beside them, after the weights may have moved to another device.

    bitsandbytes keeps references to both at the weight, and from the first product on at the layer; moving a whole
    model leaves them behind.

    Raises:
        ConfigError: the device cannot multiply such matrices.
    """
    for layer in int8_layers(model):
        weight, state = layer.weight, layer.state
        check_device(weight.device)
        scales = state.SCB if weight.SCB is None else weight.SCB
        weight.CB, weight.SCB = weight.data, scales.to(weight.device)
        state.CB = state.SCB = None


def check_device(device: torch.device) -> None:
    """Refuse devices on which bitsandbytes cannot multiply eight-bit matrices.

    Raises:
        ConfigError: with the reason.
    """
    fault = None
    if device.type == "cuda" and torch.version.hip is None:
        found = torch.cuda.get_device_capability(device)
        if found < _LEAST_CAPABILITY:
            fault = f"this GPU has compute capability {found[0]}.{found[1]}, below 7.5"
    elif device.type not in ("cpu", "cuda", "xpu", "meta"):
        fault = f"bitsandbytes has no eight-bit products for {device.type}"
    if fault:
        raise ConfigError(f"{KEY_8BIT}: {fault}; use decoder.load_in_4bit, or the CPU")


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
