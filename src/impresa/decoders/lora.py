"""Low-rank adapters (LoRA, Hu et al. 2021) in a frozen language model, by peft."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from impresa.config.decoder import LoraConfig
from impresa.decoders.quantization import INSTALL, hush_bitsandbytes
from impresa.encoders.lora import ADAPTER, check_targets, is_adapter, linear_layers, settings, target_names
from impresa.hub import import_optional


def add_adapters(model: Any, config: LoraConfig) -> Any:
    """Put adapters into a causal language model, in place, and freeze all other parameters.

    They start as the identity. They are float32 whatever the model is: at 16 bits small steps would be rounded away.

    Returns:
        peft's `LoraModel` around `model`, which can merge the adapters.

    Raises:
        ConfigError: peft cannot be imported, or the model has no layer of a target's name.
    """
    peft = _import_peft()
    check_targets(target_names(config), linear_layers(model.base_model), "decoder.lora.target_modules")
    with warnings.catch_warnings(action="ignore"):  # of GPT-2's layers, which hold their weights the other way round
        tuner = peft.LoraModel(model, _settings(peft, config), ADAPTER)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_adapter(name))
        if is_adapter(name):
            parameter.data = parameter.data.float()
    return tuner


def adapters_of(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The adapters' parameters in a decoder's state dict, by their names in its language model."""
    return {name.removeprefix("model."): value for name, value in state.items() if is_adapter(name)}


def save_adapters(
    config: LoraConfig, state: Mapping[str, Tensor], folder: Path, *, base: str, revision: str | None = None
) -> None:
    """Write trained adapters in peft's own format, which its `PeftModel.from_pretrained` reads.

    Args:
        config: the settings that they were trained with.
        state: the state dict of the decoder that they were trained in, or its part that was trained.
        folder: an existing folder.
        base: id or path of the model that they belong to, for peft to record.
        revision: its commit, if it comes from the hub.
    """
    from safetensors.torch import save_file

    peft = _import_peft()
    belongs = {"base_model_name_or_path": base, "revision": revision, "inference_mode": True}
    _settings(peft, config, task_type="CAUSAL_LM", **belongs).save_pretrained(folder)
    # peft leaves the adapter's name out in files, and calls the model that it wraps `base_model.model`.
    adapters = {
        f"base_model.model.{name.replace(f'.{ADAPTER}.', '.')}": value.contiguous()
        for name, value in adapters_of(state).items()
    }
    save_file(adapters, folder / "adapter_model.safetensors", {"format": "pt"})


def _import_peft() -> Any:
    hush_bitsandbytes()  # which peft imports where it is installed
    return import_optional("decoder.use_lora", "peft", INSTALL)


def _settings(peft: Any, config: LoraConfig, **more: Any) -> Any:
    return peft.LoraConfig(target_modules=target_names(config), **settings(config), **more)
