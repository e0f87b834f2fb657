"""A trained model in use: pictures, words and sounds in, embeddings out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from impresa.config.experiment import ExperimentConfig
from impresa.data.audio import Clip
from impresa.data.images import ImageTransform
from impresa.data.preparation import AudioTransform, Tokenizer
from impresa.errors import DataError
from impresa.models.alignment import AlignmentModel
from impresa.models.inputs import Picture, Sound, best_device, clip_of, is_array_with_rate, is_one_picture, pixels_of

Item = TypeVar("Item")


class EmbeddingModel:
    """An alignment model with its own preprocessing; `impresa.load` returns one.

    Args:
        model: the towers.
        config: the experiment that trained them.
        tokenizer: the run's tokenizer.
        image_transform: the run's image preprocessing.
        device: where to compute; None stands for a GPU if there is one, else the CPU.
        audio_transform: the run's preprocessing of sounds; None for a model without an audio encoder.
    """

    def __init__(
        self,
        model: AlignmentModel,
        config: ExperimentConfig,
        tokenizer: Tokenizer,
        image_transform: ImageTransform,
        device: torch.device | str | None = None,
        *,
        audio_transform: AudioTransform | None = None,
    ) -> None:
        self.model = model.float().eval().requires_grad_(False)
        self.config = config
        self.tokenizer = tokenizer
        self.image_transform = image_transform
        self.audio_transform = audio_transform
        self.to(device or best_device())

    @property
    def embed_dim(self) -> int:
        """E, the width of the embeddings."""
        return self.config.vision_encoder.embed_dim

    def to(self, device: torch.device | str) -> EmbeddingModel:
        """Move the model to another device; returns itself."""
        self.device = torch.device(device)
        self.model.to(self.device)
        return self

    def encode_image(
        self,
        images: Picture | Sequence[Picture],
        *,
        batch_size: int = 32,
        normalize: bool = True,
        dim: int | None = None,
        device: torch.device | str | None = None,
        show_progress: bool = False,
    ) -> Tensor:
        """Embed images.

        Args:
            images: one image or several; a tensor (N, 3, H, W) is N images.
            batch_size: images that pass the model at a time.
            normalize: scale embeddings to length one.
            dim: keep the first so many of the E numbers (a Matryoshka prefix, scaled to length one by itself).
            device: move the model there first; None leaves it where it is.
            show_progress: a progress bar on standard error.

        Returns:
            (N, E) float32 on the CPU, or (E,) for a single image.

        Raises:
            DataError: an image cannot be read, or a tensor has the wrong shape.
        """
        is_one = is_one_picture(images)
        several: list[Picture] = [images] if is_one else list(images)  # type: ignore[list-item, arg-type]
        embeddings = self._encode(
            several,
            self._embed_images,
            batch_size=batch_size,
            normalize=normalize,
            dim=dim,
            device=device,
            show_progress=show_progress,
        )
        return embeddings[0] if is_one else embeddings

    def encode_text(
        self,
        texts: str | Sequence[str],
        *,
        batch_size: int = 32,
        normalize: bool = True,
        dim: int | None = None,
        device: torch.device | str | None = None,
        show_progress: bool = False,
    ) -> Tensor:
        """Embed texts; what is longer than the model reads is cut.

        Args:
            texts: one text or several.
            batch_size: texts that pass the model at a time.
            normalize: scale embeddings to length one.
            dim: keep the first so many of the E numbers (a Matryoshka prefix, scaled to length one by itself).
            device: move the model there first; None leaves it where it is.
            show_progress: a progress bar on standard error.

        Returns:
            (N, E) float32 on the CPU, or (E,) for a single text.

        Raises:
            DataError: something else than a text is among them.
        """
        several = [texts] if isinstance(texts, str) else list(texts)
        for text in several:
            if not isinstance(text, str):
                raise DataError(f"encode_text: got {type(text).__name__}; give a string or a list of strings")
        embeddings = self._encode(
            several,
            self._embed_texts,
            batch_size=batch_size,
            normalize=normalize,
            dim=dim,
            device=device,
            show_progress=show_progress,
        )
        return embeddings[0] if isinstance(texts, str) else embeddings

    def encode_audio(
        self,
        sounds: Sound | Sequence[Sound],
        *,
        batch_size: int = 32,
        normalize: bool = True,
        dim: int | None = None,
        device: torch.device | str | None = None,
        show_progress: bool = False,
    ) -> Tensor:
        """Embed sounds of any rate; what is longer than the model hears is cut.

        Args:
            sounds: one sound or several: paths, or pairs of samples (S,) and their number per second.
            batch_size: sounds that pass the model at a time.
            normalize: scale embeddings to length one.
            dim: keep the first so many of the E numbers (a Matryoshka prefix, scaled to length one by itself).
            device: move the model there first; None leaves it where it is.
            show_progress: a progress bar on standard error.

        Returns:
            (N, E) float32 on the CPU, or (E,) for a single sound.

        Raises:
            DataError: a sound cannot be read, or the model has no audio encoder.
        """
        is_one = isinstance(sounds, Clip | str | Path) or is_array_with_rate(sounds)
        several: list[Sound] = [sounds] if is_one else list(sounds)  # type: ignore[list-item, arg-type]
        embeddings = self._encode(
            several,
            self._embed_sounds,
            batch_size=batch_size,
            normalize=normalize,
            dim=dim,
            device=device,
            show_progress=show_progress,
        )
        return embeddings[0] if is_one else embeddings

    def encode_image_audio(
        self,
        images: Sequence[Picture],
        sounds: Sequence[Sound],
        *,
        batch_size: int = 32,
        normalize: bool = True,
        dim: int | None = None,
        device: torch.device | str | None = None,
        show_progress: bool = False,
    ) -> Tensor:
        """Embed pairs of an image and a sound as one; for a model that was trained with `image+audio-text`.

        Args:
            images: N images, as of `encode_image`.
            sounds: N sounds, as of `encode_audio`.
            batch_size: pairs that pass the model at a time.
            normalize: scale embeddings to length one.
            dim: keep the first so many of the E numbers (a Matryoshka prefix, scaled to length one by itself).
            device: move the model there first; None leaves it where it is.
            show_progress: a progress bar on standard error.

        Returns:
            (N, E) float32 on the CPU.

        Raises:
            DataError: something cannot be read, the numbers differ, or the model has no fusion.
        """
        if len(images) != len(sounds):
            raise DataError(f"encode_image_audio: {len(images)} images and {len(sounds)} sounds; give as many of each")
        return self._encode(
            list(zip(images, sounds, strict=True)),
            self._embed_both,
            batch_size=batch_size,
            normalize=normalize,
            dim=dim,
            device=device,
            show_progress=show_progress,
        )

    def similarity(self, a: Tensor, b: Tensor) -> Tensor:
        """Cosines of all rows of `a` (N, E) with all rows of `b` (M, E): (N, M). A single embedding (E,) is one row."""
        return _unit(torch.atleast_2d(a)) @ _unit(torch.atleast_2d(b)).T

    @torch.no_grad()
    def _encode(
        self,
        items: list[Item],
        embed: Callable[[list[Item]], Tensor],
        *,
        batch_size: int,
        normalize: bool,
        dim: int | None,
        device: torch.device | str | None,
        show_progress: bool,
    ) -> Tensor:
        if dim is not None and not 1 <= dim <= self.embed_dim:
            raise DataError(f"dim: {dim} is not within 1 to {self.embed_dim}, the embeddings' width; choose another")
        if device is not None:
            self.to(device)
        self.model.eval()
        batches: Iterable[list[Item]] = [items[i : i + batch_size] for i in range(0, len(items), batch_size)]
        if show_progress:
            from rich.console import Console
            from rich.progress import track

            batches = track(batches, description="encoding", console=Console(stderr=True))
        parts = [embed(batch).float().cpu() for batch in batches]
        embeddings = (torch.cat(parts) if parts else torch.zeros(0, self.embed_dim))[:, :dim]
        return _unit(embeddings) if normalize else embeddings

    def _embed_images(self, images: list[Picture]) -> Tensor:
        return self.model.embed_image(
            torch.stack([pixels_of(image, self.image_transform) for image in images]).to(self.device)
        )

    def _embed_texts(self, texts: list[str]) -> Tensor:
        input_ids, mask = self.tokenizer(texts)
        return self.model.embed_text(input_ids.to(self.device), mask.to(self.device))

    def _embed_sounds(self, sounds: list[Sound]) -> Tensor:
        return self.model.embed_audio(*self._features(sounds))

    def _embed_both(self, both: list[tuple[Picture, Sound]]) -> Tensor:
        pixels = torch.stack([pixels_of(image, self.image_transform) for image, _ in both]).to(self.device)
        return self.model.embed_image_audio(pixels, *self._features([sound for _, sound in both]))

    def _features(self, sounds: list[Sound]) -> tuple[Tensor, Tensor]:
        """What the audio tower sees of the sounds, and its mask."""
        if self.audio_transform is None:
            fault = "encode_audio: this model has no audio encoder"
            raise DataError(f"{fault}; train one with `audio_encoder` in the config")
        features, mask = self.audio_transform([clip_of(sound, self.audio_transform) for sound in sounds])
        return features.to(self.device), mask.to(self.device)


def _unit(embeddings: Tensor) -> Tensor:
    return F.normalize(embeddings.float(), dim=-1)
