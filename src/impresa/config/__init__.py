"""The configuration: two dialects, one engine. `EncoderConfig` and all other parts can be imported from here.

Nothing here imports torch, and Hydra only where it composes.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from impresa.config import decoder, experiment
from impresa.config.experiment import ExperimentConfig
from impresa.config.memory_vlm import MemoryVLMConfig

# Not lazily: the module of the same name would take the function's place when it is imported later.
from impresa.config.validate import validate

if TYPE_CHECKING:
    from impresa.config.compose import load_experiment, read_config, to_yaml
    from impresa.config.runs import prepare

__all__ = [
    "ExperimentConfig",
    "MemoryVLMConfig",
    "load_experiment",
    "prepare",
    "read_config",
    "to_yaml",
    "validate",
]


def __getattr__(name: str) -> Any:
    # Hydra is imported with its first use, so that lower parts can name a config class cheaply.
    if name in ("load_experiment", "read_config", "to_yaml"):
        return getattr(import_module("impresa.config.compose"), name)
    if name == "prepare":
        return import_module("impresa.config.runs").prepare
    if name.endswith("Config"):
        return getattr(decoder if hasattr(decoder, name) else experiment, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
