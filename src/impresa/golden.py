"""Golden inputs: what a model made of a few samples at the end of its training, to be checked when it is loaded."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from impresa.data.audio import Clip
from impresa.data.batch import Sample
from impresa.errors import CheckpointError
from impresa.files import replacing
from impresa.models.answerer import AnsweringModel
from impresa.models.embedder import EmbeddingModel
from impresa.run_files import GOLDEN

SMALLEST_GOLDEN_COSINE = 0.999

Pairs = list[tuple[Tensor, Tensor]]
"""Rows as they are now and as they were."""


def save_golden(run_dir: Path, model: EmbeddingModel | AnsweringModel, examples: Sequence[Sample]) -> None:
    """Store inputs as they come, before any preprocessing, and what the model makes of them."""
    if isinstance(model, EmbeddingModel):
        tensors, metadata = _embeddings(model, examples)
    else:
        tensors, metadata = _states(model, [sample for sample in examples if sample.image and sample.dialogues])
    with replacing(run_dir / GOLDEN) as temporary:
        save_file(tensors, temporary, {**metadata, "device": model.device.type})


def check_golden(run_dir: Path, model: EmbeddingModel | AnsweringModel) -> None:
    """Compare what the model makes of the golden inputs now with what it made then.

    Raises:
        CheckpointError: it is something else, on the kind of device that the run was finished on; on another it is a
            warning.
    """
    try:
        with safe_open(run_dir / GOLDEN, framework="pt") as file:
            metadata: dict[str, Any] = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
    except SafetensorError as error:
        raise CheckpointError(f"{run_dir / GOLDEN}: {error}; restore the run from a copy") from error
    if isinstance(model, EmbeddingModel):
        pairs = _embedding_pairs(model, tensors, metadata)
    else:
        images = [tensors[f"image_{i}"] for i in range(len(tensors["states"]))]
        pairs = [(_last_states(model, images, json.loads(metadata["questions"])), tensors["states"])]
    worst = min((F.cosine_similarity(now, then).min().item() for now, then in pairs if len(then)), default=1.0)
    if worst >= SMALLEST_GOLDEN_COSINE:
        return
    fault = f"{run_dir}: the model's outputs differ from those of the training (cosine {worst:.4f})"
    if model.device.type == metadata["device"]:
        raise CheckpointError(f"{fault}; use the versions that environment.json names, or train the run again")
    there, here = metadata["device"], model.device.type
    warnings.warn(f"{fault}, which was finished on {there}; this is {here}", stacklevel=3)


def _embeddings(model: EmbeddingModel, examples: Sequence[Sample]) -> tuple[dict[str, Tensor], dict[str, str]]:
    images = _small_images(examples, model.image_transform.size)
    texts = [caption for sample in examples for caption in sample.captions[:1]]
    tensors = {f"image_{i}": image for i, image in enumerate(images)}
    tensors["image_embeddings"] = model.encode_image(images)
    tensors["text_embeddings"] = model.encode_text(texts)
    metadata = {"texts": json.dumps(texts)}
    if model.audio_transform is not None:
        sounds = [sample.audio for sample in examples if sample.audio is not None]
        tensors |= {f"audio_{i}": sound.samples for i, sound in enumerate(sounds)}
        tensors["audio_embeddings"] = model.encode_audio(sounds)
        metadata["audio_rates_hz"] = json.dumps([sound.rate_hz for sound in sounds])
    return tensors, metadata


def _embedding_pairs(model: EmbeddingModel, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> Pairs:
    images = [tensors[f"image_{i}"] for i in range(len(tensors["image_embeddings"]))]
    pairs = [
        (model.encode_image(images), tensors["image_embeddings"]),
        (model.encode_text(json.loads(metadata["texts"])), tensors["text_embeddings"]),
    ]
    if model.audio_transform is not None:
        rates_hz = json.loads(metadata["audio_rates_hz"])
        sounds = [Clip(tensors[f"audio_{i}"], rate_hz) for i, rate_hz in enumerate(rates_hz)]
        pairs.append((model.encode_audio(sounds), tensors["audio_embeddings"]))
    return pairs


def _states(model: AnsweringModel, examples: Sequence[Sample]) -> tuple[dict[str, Tensor], dict[str, str]]:
    images = _small_images(examples, model.image_transform.size)
    questions = [sample.dialogues[0].turns[0].question for sample in examples]
    tensors = {f"image_{i}": image for i, image in enumerate(images)}
    return {**tensors, "states": _last_states(model, images, questions)}, {"questions": json.dumps(questions)}


def _last_states(model: AnsweringModel, images: Sequence[Tensor], questions: Sequence[str]) -> Tensor:
    """(N, H) float32: the state that the first token of each answer is read from."""
    rows = [model.state_before_answer(image, question) for image, question in zip(images, questions, strict=True)]
    return torch.stack(rows) if rows else torch.zeros(0, model.model.decoder.hidden_size)


def _small_images(examples: Sequence[Sample], size: int) -> list[Tensor]:
    """(3, h, w) uint8 of the images, none larger than twice what the tower sees."""
    images = []
    for sample in examples:
        if sample.image is not None:
            small = sample.image.copy()
            small.thumbnail((2 * size, 2 * size))
            images.append(torch.from_numpy(np.array(small)).permute(2, 0, 1).contiguous())
    return images
