"""A trained alignment model in use: images, texts and sounds in, embeddings out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypedDict, Unpack

import torch
from torch import Tensor
from torch.nn import functional as F

from impresa.config.experiment import ExperimentConfig
from impresa.data.audio import Clip
from impresa.data.preprocessing import Preprocessing
from impresa.data.sample import Sample
from impresa.errors import DataError
from impresa.tasks.alignment.model import AlignmentModel
from impresa.tasks.base import UsableModel
from impresa.tasks.inputs import (
    Picture,
    Sound,
    features_of,
    is_array_with_rate,
    is_one_picture,
    pixels_of,
    small_images,
)


class EncodeOptions(TypedDict, total=False):
    """Keyword arguments of every `encode_*` method."""

    batch_size: int
    """Inputs that pass the model at a time; 32 unless given."""
    normalize: bool
    """Scale embeddings to length one; true unless given."""
    dim: int | None
    """Keep the first `dim` of the E numbers (a Matryoshka prefix, scaled to length one by itself)."""
    device: torch.device | str | None
    """Move the model there first; None leaves it where it is."""
    show_progress: bool
    """A progress bar on standard error."""


class EmbeddingModel(UsableModel):
    """An alignment model with its own preprocessing; `impresa.load` returns one.

    Every `encode_*` method takes the keyword arguments of `EncodeOptions` and returns float32 embeddings on the CPU:
    (N, E) of several inputs, (E,) of a single one. Arguments are those of `UsableModel`; the towers are frozen and put
    into float32.
    """

    model: AlignmentModel

    def __init__(
        self,
        model: AlignmentModel,
        config: ExperimentConfig,
        preprocessing: Preprocessing,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(model.float().eval().requires_grad_(False), config, preprocessing, device)

    @property
    def embed_dim(self) -> int:
        """E, the width of the embeddings."""
        return self.config.vision_encoder.embed_dim

    def encode_image(self, images: Picture | Sequence[Picture], **options: Unpack[EncodeOptions]) -> Tensor:
        """Embed images.

        Args:
            images: one image or several; a tensor (N, 3, H, W) is N images.

        Raises:
            DataError: an image cannot be read, or a tensor has the wrong shape.
        """
        return self._encode(images, is_one_picture(images), self._embed_images, **options)

    def encode_text(self, texts: str | Sequence[str], **options: Unpack[EncodeOptions]) -> Tensor:
        """Embed one text or several; those longer than the model's context are cut.

        Raises:
            DataError: an item is not a string.
        """
        return self._encode(texts, isinstance(texts, str), self._embed_texts, **options)

    def encode_audio(self, sounds: Sound | Sequence[Sound], **options: Unpack[EncodeOptions]) -> Tensor:
        """Embed sounds of any rate; those longer than the model's context are cut.

        Args:
            sounds: one sound or several: paths, or pairs of samples (S,) and their number per second.

        Raises:
            DataError: a sound cannot be read, or the model has no audio encoder.
        """
        is_one = isinstance(sounds, Clip | str | Path) or is_array_with_rate(sounds)
        return self._encode(sounds, is_one, self._embed_sounds, **options)

    def encode_image_audio(
        self, images: Sequence[Picture], sounds: Sequence[Sound], **options: Unpack[EncodeOptions]
    ) -> Tensor:
        """Embed N pairs of an image and a sound as one; for a model that was trained with `image+audio-text`.

        Raises:
            DataError: an input cannot be read, the numbers differ, or the model has no fusion.
        """
        if len(images) != len(sounds):
            raise DataError(f"encode_image_audio: {len(images)} images and {len(sounds)} sounds; give as many of each")
        return self._encode(list(zip(images, sounds, strict=True)), False, self._embed_both, **options)

    def similarity(self, a: Tensor, b: Tensor) -> Tensor:
        """Cosines of all rows of `a` (N, E) with all rows of `b` (M, E): (N, M). A single embedding (E,) is one row."""
        return _unit(torch.atleast_2d(a)) @ _unit(torch.atleast_2d(b)).T

    @torch.no_grad()
    def _encode(
        self,
        inputs: Any,
        is_one: bool,
        embed: Callable[[list[Any]], Tensor],
        *,
        batch_size: int = 32,
        normalize: bool = True,
        dim: int | None = None,
        device: torch.device | str | None = None,
        show_progress: bool = False,
    ) -> Tensor:
        if dim is not None and not 1 <= dim <= self.embed_dim:
            raise DataError(f"dim: {dim} is not within 1 to {self.embed_dim}, the embeddings' width; choose another")
        if device is not None:
            self.to(device)
        self.model.eval()
        items = [inputs] if is_one else list(inputs)
        batches: Iterable[list[Any]] = [items[i : i + batch_size] for i in range(0, len(items), batch_size)]
        if show_progress:
            from rich.console import Console
            from rich.progress import track

            batches = track(batches, description="encoding", console=Console(stderr=True))
        parts = [embed(batch).float().cpu() for batch in batches]
        embeddings = (torch.cat(parts) if parts else torch.zeros(0, self.embed_dim))[:, :dim]
        if normalize:
            embeddings = _unit(embeddings)
        return embeddings[0] if is_one else embeddings

    def golden_tensors(self, examples: Sequence[Sample]) -> tuple[dict[str, Tensor], dict[str, str]]:
        images = small_images(examples, self.preprocessing.image.size)
        texts = [caption for sample in examples for caption in sample.captions[:1]]
        tensors = {f"image_{i}": image for i, image in enumerate(images)}
        tensors["image_embeddings"] = self.encode_image(images)
        tensors["text_embeddings"] = self.encode_text(texts)
        metadata = {"texts": json.dumps(texts)}
        if self.preprocessing.audio is not None:
            sounds = [sample.audio for sample in examples if sample.audio is not None]
            tensors |= {f"audio_{i}": sound.samples for i, sound in enumerate(sounds)}
            tensors["audio_embeddings"] = self.encode_audio(sounds)
            metadata["audio_rates_hz"] = json.dumps([sound.rate_hz for sound in sounds])
        return tensors, metadata

    def golden_pairs(self, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> list[tuple[Tensor, Tensor]]:
        images = [tensors[f"image_{i}"] for i in range(len(tensors["image_embeddings"]))]
        pairs = [
            (self.encode_image(images), tensors["image_embeddings"]),
            (self.encode_text(json.loads(metadata["texts"])), tensors["text_embeddings"]),
        ]
        if self.preprocessing.audio is not None:
            rates_hz = json.loads(metadata["audio_rates_hz"])
            sounds = [Clip(tensors[f"audio_{i}"], rate_hz) for i, rate_hz in enumerate(rates_hz)]
            pairs.append((self.encode_audio(sounds), tensors["audio_embeddings"]))
        return pairs

    def _embed_images(self, images: list[Picture]) -> Tensor:
        return self.model.embed_image(pixels_of(images, self.preprocessing.image).to(self.device))

    def _embed_texts(self, texts: list[str]) -> Tensor:
        for text in texts:
            if not isinstance(text, str):
                raise DataError(f"encode_text: got {type(text).__name__}; give a string or a list of strings")
        input_ids, mask = self.preprocessing.texts(texts)
        return self.model.embed_text(input_ids.to(self.device), mask.to(self.device))

    def _embed_sounds(self, sounds: list[Sound]) -> Tensor:
        return self.model.embed_audio(*self._features(sounds))

    def _embed_both(self, both: list[tuple[Picture, Sound]]) -> Tensor:
        images, sounds = (list(items) for items in zip(*both, strict=True))
        pixels = pixels_of(images, self.preprocessing.image).to(self.device)
        return self.model.embed_image_audio(pixels, *self._features(sounds))

    def _features(self, sounds: list[Sound]) -> tuple[Tensor, Tensor]:
        if self.preprocessing.audio is None:
            fault = "encode_audio: this model has no audio encoder"
            raise DataError(f"{fault}; train one with `audio_encoder` in the config")
        features, mask = features_of(sounds, self.preprocessing.audio)
        return features.to(self.device), mask.to(self.device)


def _unit(embeddings: Tensor) -> Tensor:
    return F.normalize(embeddings.float(), dim=-1)
