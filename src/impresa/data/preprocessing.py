"""Preprocessing of texts, images and sounds: chosen by the towers, kept in the run, and applied to batches."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import ConfigDict
from torch import Tensor

from impresa.config.describe import Fault
from impresa.config.encoder import is_from_scratch
from impresa.config.experiment import ExperimentConfig
from impresa.config.memory_vlm import both_names
from impresa.config.paths import expanded
from impresa.data.audio import RATE_HZ, Clip, LogMelTransform, PretrainedAudioTransform, StoredExtractor
from impresa.data.batch_memory import new_tensor
from impresa.data.chat import ChatFormat, is_chat, load_chat
from impresa.data.images import ImageTransform, pretrained_image_transform
from impresa.data.sample import Sample
from impresa.data.tokenizers import PretrainedTokenizer, TextTokenizer, train_tokenizer, train_word_tokenizer
from impresa.errors import CheckpointError, ConfigError, DataError
from impresa.files import replacing_folder, write_atomic
from impresa.json_files import RESTORE, read_json
from impresa.run_dir.layout import PREPROCESSING, TOKENIZER

Tokenizer = TextTokenizer | PretrainedTokenizer
AudioTransform = LogMelTransform | PretrainedAudioTransform

_SILENCE = Clip(torch.zeros(1), RATE_HZ)


@dataclass(frozen=True)
class StoredPreprocessing:
    """The file of a run's transforms, and of what its model was taught, see `Preprocessing`."""

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid")
    image: ImageTransform
    audio: LogMelTransform | StoredExtractor | None = None
    captions: bool | None = None
    pictures: bool | None = None


@dataclass(frozen=True)
class Preprocessing:
    """Tokenizer and transforms, the same in training, evaluation and use."""

    tokenizer: Tokenizer | ChatFormat
    """For captions; with a decoder, for dialogues."""
    image: ImageTransform
    audio: AudioTransform | None = None
    """None without an audio encoder."""
    captions: bool | None = None
    """False if no question of the training asked for a description; None where that is not known, as in runs of older
    versions and of alignments."""
    pictures: bool | None = None
    """False if no sample of the training had an image, only sounds; None where that is not known, likewise."""

    @property
    def texts(self) -> Tokenizer:
        """The tokenizer of captions. Raises `DataError` for one of dialogues."""
        if isinstance(self.tokenizer, ChatFormat):
            raise DataError("tokenizer: it frames dialogues and cannot read captions; restore the run's own")
        return self.tokenizer

    @property
    def chat(self) -> ChatFormat:
        """The format of dialogues. Raises `DataError` for a tokenizer of captions."""
        if not isinstance(self.tokenizer, ChatFormat):
            raise DataError("tokenizer: no chat format can be read; restore the run's own")
        return self.tokenizer

    def save(self, run_dir: Path) -> None:
        """Write the files that `load` reads."""
        with replacing_folder(run_dir / TOKENIZER) as folder:
            self.tokenizer.save(folder)
        transforms: dict[str, Any] = {"image": self.image.to_dict()}
        if self.audio is not None:
            transforms["audio"] = self.audio.to_dict()
        taught = {"captions": self.captions, "pictures": self.pictures}
        transforms |= {name: value for name, value in taught.items() if value is not None}
        write_atomic(run_dir / PREPROCESSING, json.dumps(transforms, indent=2) + "\n")

    @classmethod
    def load(cls, run_dir: Path) -> Preprocessing:
        """The preprocessing of a run. Raises the errors of `read_transforms` and `load_tokenizer`."""
        image, audio = read_transforms(run_dir)
        stored = read_stored(run_dir)
        return cls(load_tokenizer(run_dir / TOKENIZER), image, audio, stored.captions, stored.pictures)


def read_stored(run_dir: Path) -> StoredPreprocessing:
    """The file of a run. Raises `CheckpointError` as `read_transforms` does."""
    return read_json(run_dir / PREPROCESSING, StoredPreprocessing)


def read_transforms(run_dir: Path) -> tuple[ImageTransform, AudioTransform | None]:
    """The transforms of a run; that of sounds is None if the run's model has no audio encoder.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    path = run_dir / PREPROCESSING
    stored = read_stored(run_dir)
    try:
        return stored.image, stored.audio.transform() if isinstance(stored.audio, StoredExtractor) else stored.audio
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}; {RESTORE}") from error


def load_tokenizer(directory: Path) -> Tokenizer | ChatFormat:
    """The tokenizer or chat format that its `save` wrote.

    Raises:
        DataError: its files are missing or damaged.
    """
    if is_chat(directory):
        return load_chat(directory)
    kind = PretrainedTokenizer if PretrainedTokenizer.is_in(directory) else TextTokenizer
    return kind.load(directory)


def prepare_tokenizer(config: ExperimentConfig, captions: Iterable[str]) -> Tokenizer:
    """A tokenizer trained on the captions for a text tower from scratch, a pretrained tower's own otherwise.

    Raises:
        ConfigError: the pretrained tower's tokenizer cannot be read, or the vocabulary is too small.
    """
    tower = config.text_encoder
    if is_from_scratch("text", tower):
        train = train_word_tokenizer if tower.backbone == "bag" else train_tokenizer
        return train(captions, tower.vocab_size, tower.max_len)
    return PretrainedTokenizer.from_backbone(tower.backbone, tower.max_len)


def prepare_image_transform(config: ExperimentConfig) -> ImageTransform:
    """The transform of the tower's own run if it has one, CLIP's for a ViT from scratch, else a pretrained tower's own;
    images become squares as `dataset.resize` says.

    Raises:
        ConfigError: the pretrained tower's preprocessing cannot be read, or `dataset.resize` is not that of the run.
        CheckpointError: the tower's run is damaged.
    """
    size, resize, tower = config.dataset.image_size, config.dataset.resize, config.vision_encoder
    if tower.checkpoint is not None:
        own = read_transforms(expanded(tower.checkpoint))[0]
        if resize not in ("auto", own.resize):
            fault = f"{resize}, but {tower.checkpoint} was trained with {own.resize}; leave it out"
            raise ConfigError(Fault(both_names("dataset.resize"), fault).line())
        return own
    own = ImageTransform(size) if is_from_scratch("image", tower) else pretrained_image_transform(tower.backbone, size)
    if resize == "auto":
        return own
    return replace(own, resize=resize, crop_fraction=own.crop_fraction if resize == own.resize else 1.0)


def prepare_audio_transform(config: ExperimentConfig) -> AudioTransform | None:
    """The same for sounds, with log-mel features for an audio tower from scratch; None without an audio tower."""
    tower = config.audio_encoder
    if tower is None:
        return None
    if tower.checkpoint is not None:
        return read_transforms(expanded(tower.checkpoint))[1]
    if is_from_scratch("audio", tower):
        return LogMelTransform(tower.audio_max_seconds)
    return PretrainedAudioTransform.from_backbone(tower.backbone, tower.audio_max_seconds)


def stack_images(transform: ImageTransform, samples: Sequence[Sample], present: Tensor | None = None) -> Tensor | None:
    """(B, 3, S, S) of B samples: zeros where `present` (B,) is false; None if no sample has an image.

    Without `present`, samples without an image have no row.
    """
    images = [sample.image for sample in samples if sample.image is not None]
    return image_rows(transform, transform.pixels(images) if images else None, present)


def image_rows(transform: ImageTransform, pixels: Tensor | None, present: Tensor | None = None) -> Tensor | None:
    """The same from the pixels (K, S, S, 3) of the K samples that have an image; None for K = 0."""
    images = None if pixels is None else transform.normalize(pixels)
    if present is not None and images is None:
        images = torch.zeros(0, 3, transform.size, transform.size)
    return images if images is None else spread_rows(images, present)


def spread_rows(rows: Tensor, present: Tensor | None) -> Tensor:
    """(K, ...) to (B, ...): the rows where `present` (B,) is true, in order, and zeros elsewhere."""
    if present is None:
        return rows
    found = rows.new_zeros(len(present), *rows.shape[1:])
    found[present] = rows
    return found


def stack_kept(samples: Sequence[Sample], present: Tensor | None = None) -> Tensor | None:
    """(B, F) float16, what is kept of the images of B samples, with rows as in `stack_images`."""
    kept = [sample.kept.features for sample in samples if sample.kept is not None]
    if not kept:
        return None
    places = range(len(kept)) if present is None else present.nonzero().flatten().tolist()
    rows = new_tensor(len(kept) if present is None else len(present), len(kept[0]), dtype=torch.float16)
    view = rows.zero_().numpy()
    for place, row in zip(places, kept, strict=True):
        view[place] = row
    return rows


def stack_sounds(transform: AudioTransform, samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
    """Features (B, F, M) of B samples and their mask (B, F); a sample without a sound is silent."""
    return transform([sample.audio or _SILENCE for sample in samples])


def mask_of(present: list[bool]) -> Tensor | None:
    """(B,) bool, or None if all are present."""
    return None if all(present) else torch.tensor(present)
