"""From a config to the parts that a training joins: tokenizer, preprocessing, data, model."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from impresa.checkpoint import read_transforms, revision_of_language_model, start_from
from impresa.config.adopt import read_run
from impresa.config.experiment import ExperimentConfig
from impresa.config.paths import expanded
from impresa.data.chat import ChatFormat, load_chat, prepare_chat
from impresa.data.images import ImageTransform
from impresa.data.preparation import (
    AudioTransform,
    Tokenizer,
    load_tokenizer,
    prepare_audio_transform,
    prepare_image_transform,
    prepare_tokenizer,
    seconds_of_sound,
)
from impresa.data.sources import Source, open_source
from impresa.data.training_data import TrainingData
from impresa.errors import ConfigError
from impresa.models.alignment import AlignmentModel
from impresa.models.build import build_alignment, build_vlm
from impresa.models.vlm import VisionLanguageModel
from impresa.run_files import BAD_SAMPLES, TOKENIZER

logger = logging.getLogger(__name__)


@dataclass
class Parts:
    """What is trained, and on what."""

    tokenizer: Tokenizer | ChatFormat
    """What makes tokens of texts; with a decoder, of dialogues."""
    image_transform: ImageTransform
    audio_transform: AudioTransform | None
    """None without an audio encoder."""
    data: TrainingData
    model: AlignmentModel | VisionLanguageModel

    @property
    def num_parameters(self) -> int:
        """Parameters of the model, frozen ones included."""
        return sum(number for _, number in self.parameters())

    def drop_model(self) -> None:
        """Give the memory of the model back, once it is saved."""
        del self.model

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
    asks = config.decoder is not None
    train_source = open_source(config.dataset, "train", audio_seconds=seconds_of_sound(config), dialogues=asks)
    tokenizer = _tokenizer(config, train_source, run_dir if resumed else None)
    image_transform, audio_transform = _transforms(config)
    bad_samples = run_dir / BAD_SAMPLES if run_dir is not None else None
    data = TrainingData(
        config, tokenizer, image_transform, bad_samples, audio_transform=audio_transform, train_source=train_source
    )
    torch.manual_seed(config.seed)
    return Parts(tokenizer, image_transform, audio_transform, data, _model(config, tokenizer))


def _model(config: ExperimentConfig, tokenizer: Tokenizer | ChatFormat) -> AlignmentModel | VisionLanguageModel:
    if not isinstance(tokenizer, ChatFormat):
        return build_alignment(config, tokenizer.vocab_size, tokenizer.end_id)
    decoder = config.decoder
    if decoder is None or decoder.init_from is None:
        return build_vlm(config, tokenizer.vocab_size)
    first_run = expanded(decoder.init_from)
    revision = revision_of_language_model(first_run, decoder)
    model = build_vlm(config, tokenizer.vocab_size, revision=revision)
    num = start_from(model, first_run)
    logger.info(f"decoder.init_from: {num} tensors from {decoder.init_from}")
    return model


def _tokenizer(config: ExperimentConfig, source: Source, resumed_run: Path | None) -> Tokenizer | ChatFormat:
    """That of the run that is resumed, continued or stood on; else a new one, or the pretrained model's own."""
    decoder, text = config.decoder, config.text_encoder
    if decoder is None:
        if resumed_run is not None or text.checkpoint is not None:
            return load_tokenizer((resumed_run or expanded(text.checkpoint or "")) / TOKENIZER)
        return prepare_tokenizer(config, source.captions())
    if resumed_run is not None:
        return load_chat(resumed_run / TOKENIZER)
    if decoder.init_from is not None:
        if read_run("decoder.init_from", decoder.init_from).decoder is None:
            raise ConfigError(
                f"decoder.init_from: {decoder.init_from} is an alignment; name it in vision_encoder.checkpoint"
            )
        return load_chat(expanded(decoder.init_from) / TOKENIZER)
    return prepare_chat(decoder, source.dialogues())


def _transforms(config: ExperimentConfig) -> tuple[ImageTransform, AudioTransform | None]:
    """The towers' own preprocessing; that of their run where they come from one."""
    image_run = config.vision_encoder.checkpoint
    audio_run = None if config.audio_encoder is None else config.audio_encoder.checkpoint
    image = prepare_image_transform(config) if image_run is None else read_transforms(expanded(image_run))[0]
    audio = prepare_audio_transform(config) if audio_run is None else read_transforms(expanded(audio_run))[1]
    return image, audio
