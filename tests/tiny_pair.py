"""A small pretrained pair as an experiment: both towers of one model, on a few of the embedded scenes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from impresa.config import ExperimentConfig
from impresa.config.dataset import DatasetConfig, ShapesConfig
from impresa.config.encoder import EncoderConfig
from impresa.config.experiment import TrainerConfig
from impresa.config.optimization import OptimizationConfig
from impresa.config.types import LoggingConfig

SCENES = ShapesConfig(num_train=24, num_val=8, num_test=8)


def pair_experiment(folder: Path, embed_dim: int, **tower: Any) -> ExperimentConfig:
    """One epoch of three steps; `tower` are settings of both towers."""
    both = EncoderConfig(**{"backbone": str(folder), "embed_dim": embed_dim, "projection": "auto", **tower})
    return ExperimentConfig(
        dataset=DatasetConfig(batch_size=8, image_size=32, num_workers=0, shapes=SCENES),
        vision_encoder=both,
        text_encoder=both,
        optimization=OptimizationConfig(warmup_epochs=0, lr=1e-2, lr_pretrained=1e-3),
        trainer=TrainerConfig(epochs=1, accelerator="cpu", logging=LoggingConfig(tensorboard=False)),
    )
