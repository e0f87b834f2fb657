"""From a config to the parts that a training joins: tokenizer, preprocessing, data, model."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from impresa.config.experiment import ExperimentConfig
from impresa.data.images import ImageTransform
from impresa.data.module import DataModule
from impresa.data.preparation import (
    AudioTransform,
    Tokenizer,
    load_tokenizer,
    prepare_audio_transform,
    prepare_image_transform,
    prepare_tokenizer,
    seconds_of_sound,
)
from impresa.data.sources import open_source
from impresa.models.alignment import AlignmentModel
from impresa.models.build import build_alignment
from impresa.run_files import BAD_SAMPLES, TOKENIZER

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Parts:
    """What is trained, and on what."""

    tokenizer: Tokenizer
    image_transform: ImageTransform
    audio_transform: AudioTransform | None
    """None without an audio encoder."""
    data: DataModule
    model: AlignmentModel

    @property
    def num_parameters(self) -> int:
        """Parameters of the model, frozen ones included."""
        return sum(number for _, number in self.parameters())

    def parameters(self) -> Iterator[tuple[str, int]]:
        """Name and number of parameters of each part of the model."""
        for name, part in self.model.named_children():
            yield name, sum(parameter.numel() for parameter in part.parameters())


def build_parts(config: ExperimentConfig, run_dir: Path | None, *, resumed: bool = False) -> Parts:
    """Open the data, prepare the tokenizer (or take that of a resumed run), draw or load the weights.

    Args:
        config: the experiment.
        run_dir: the run; None writes nothing.
        resumed: the run has a tokenizer already.
    """
    train_source = open_source(config.dataset, "train", audio_seconds=seconds_of_sound(config))
    if resumed and run_dir is not None:
        tokenizer = load_tokenizer(run_dir / TOKENIZER)
    else:
        tokenizer = prepare_tokenizer(config, train_source.captions())
    image_transform = prepare_image_transform(config)
    audio_transform = prepare_audio_transform(config)
    bad_samples = run_dir / BAD_SAMPLES if run_dir is not None else None
    data = DataModule(
        config, tokenizer, image_transform, bad_samples, audio_transform=audio_transform, train_source=train_source
    )
    torch.manual_seed(config.seed)
    model = build_alignment(config, tokenizer.vocab_size, tokenizer.end_id)
    return Parts(tokenizer, image_transform, audio_transform, data, model)
