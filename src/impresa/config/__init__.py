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
from impresa.config.memory_vlm import MemoryVLMConfig

# Not lazily: the module of the same name would take the function's place when it is imported later.
from impresa.config.validate import validate

if TYPE_CHECKING:
    from impresa.config.load import load_experiment as load_experiment
    from impresa.config.load import read_config as read_config
    from impresa.config.load import to_yaml as to_yaml

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


def __getattr__(name: str) -> Any:
    # Hydra is imported with its first use, so that lower parts can name a config class cheaply.
    if name in ("load_experiment", "read_config", "to_yaml"):
        from impresa.config import load

        return getattr(load, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
