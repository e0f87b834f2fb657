"""What a run does to its images, texts and sounds before the model sees them: chosen by the towers, kept in the run."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from impresa.config.experiment import ExperimentConfig, is_from_scratch
from impresa.data.audio import LogMelTransform
from impresa.data.images import ImageTransform
from impresa.data.pretrained import PretrainedAudioTransform, PretrainedTokenizer, pretrained_image_transform
from impresa.data.tokenizers import TextTokenizer, train_tokenizer

Tokenizer = TextTokenizer | PretrainedTokenizer
AudioTransform = LogMelTransform | PretrainedAudioTransform


def prepare_image_transform(config: ExperimentConfig) -> ImageTransform:
    """CLIP's preprocessing for our own ViT, a pretrained tower's own otherwise.

    Raises:
        ConfigError: the pretrained tower's preprocessing cannot be read.
    """
    size, tower = config.dataset.image_size, config.vision_encoder
    if is_from_scratch("image", tower):
        return ImageTransform(size)
    return pretrained_image_transform(tower.backbone, size)


def prepare_audio_transform(config: ExperimentConfig) -> AudioTransform | None:
    """Log-mel features for our own audio tower, a pretrained tower's own otherwise; None without an audio tower.

    Raises:
        ConfigError: the pretrained tower's preprocessing cannot be read.
    """
    tower = config.audio_encoder
    if tower is None:
        return None
    if is_from_scratch("audio", tower):
        return LogMelTransform(tower.audio_max_seconds)
    return PretrainedAudioTransform.from_backbone(tower.backbone, tower.audio_max_seconds)


def audio_transform_from_dict(values: dict[str, Any]) -> AudioTransform:
    """The transform that either kind's `to_dict` described."""
    kind = PretrainedAudioTransform if "extractor" in values else LogMelTransform
    return kind.from_dict(values)


def seconds_of_sound(config: ExperimentConfig) -> float | None:
    """How much of each sound is read; None without an audio tower, which reads no sound at all."""
    return None if config.audio_encoder is None else config.audio_encoder.audio_max_seconds


def prepare_tokenizer(config: ExperimentConfig, captions: Iterable[str]) -> Tokenizer:
    """A tokenizer trained on the captions for our own text tower, a pretrained tower's own otherwise.

    Raises:
        ConfigError: the pretrained tower's tokenizer cannot be read, or the vocabulary is too small.
    """
    tower = config.text_encoder
    if is_from_scratch("text", tower):
        return train_tokenizer(captions, tower.vocab_size, tower.max_len)
    return PretrainedTokenizer.from_backbone(tower.backbone, tower.max_len)


def load_tokenizer(directory: Path) -> Tokenizer:
    """The tokenizer that either kind's `save` wrote.

    Raises:
        DataError: there is none, or its files are damaged.
    """
    kind = PretrainedTokenizer if PretrainedTokenizer.is_in(directory) else TextTokenizer
    return kind.load(directory)
