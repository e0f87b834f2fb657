"""The configuration: two dialects, one engine. Nothing here imports torch, and Hydra only where it composes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from impresa.config.experiment import (
    CheckpointConfig,
    DatasetConfig,
    DecoderConfig,
    EncoderConfig,
    ExperimentConfig,
    FusionConfig,
    GenerationConfig,
    LabelsConfig,
    LoggingConfig,
    LoraConfig,
    LossConfig,
    MemoryConfig,
    OptimizationConfig,
    RecursionConfig,
    ShapesConfig,
    TrainerConfig,
)

if TYPE_CHECKING:
    from impresa.config.load import load_experiment as load_experiment
    from impresa.config.load import read_config as read_config
    from impresa.config.load import to_yaml as to_yaml
    from impresa.config.memory_vlm import MemoryVLMConfig as MemoryVLMConfig
    from impresa.config.validate import validate as validate

__all__ = [
    "CheckpointConfig",
    "DatasetConfig",
    "DecoderConfig",
    "EncoderConfig",
    "ExperimentConfig",
    "FusionConfig",
    "GenerationConfig",
    "LabelsConfig",
    "LoggingConfig",
    "LoraConfig",
    "LossConfig",
    "MemoryConfig",
    "MemoryVLMConfig",
    "OptimizationConfig",
    "RecursionConfig",
    "ShapesConfig",
    "TrainerConfig",
    "load_experiment",
    "read_config",
    "to_yaml",
    "validate",
]

_LAZY = {
    "MemoryVLMConfig": "impresa.config.memory_vlm",
    "load_experiment": "impresa.config.load",
    "read_config": "impresa.config.load",
    "to_yaml": "impresa.config.load",
    "validate": "impresa.config.validate",
}


def __getattr__(name: str) -> Any:
    # Hydra is imported with its first use, so that lower parts can name a config class cheaply.
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
