"""What a run does to its images and texts before the model sees them: chosen by the towers, kept in the run."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from impresa.config.checks import is_from_scratch
from impresa.config.experiment import ExperimentConfig
from impresa.data.images import ImageTransform
from impresa.data.pretrained import PretrainedTokenizer, pretrained_image_transform
from impresa.data.tokenizers import TextTokenizer, train_tokenizer

Tokenizer = TextTokenizer | PretrainedTokenizer


def prepare_image_transform(config: ExperimentConfig) -> ImageTransform:
    """CLIP's preprocessing for our own ViT, a pretrained tower's own otherwise.

    Raises:
        ConfigError: the pretrained tower's preprocessing cannot be read.
    """
    size, tower = config.dataset.image_size, config.vision_encoder
    if is_from_scratch("image", tower):
        return ImageTransform(size)
    return pretrained_image_transform(tower.backbone, size)


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
