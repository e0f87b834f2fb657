"""The run directory, as far as using a trained model needs it: written and read without Lightning."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file, save_model
from torch import Tensor
from torch.nn import functional as F

from impresa.config import read_config, to_yaml
from impresa.config.checks import towers
from impresa.config.experiment import ExperimentConfig
from impresa.data.audio import Clip
from impresa.data.batch import Sample
from impresa.data.images import ImageTransform
from impresa.data.preparation import AudioTransform, Tokenizer, audio_transform_from_dict, load_tokenizer
from impresa.encoders.pretrained import PretrainedBackbone
from impresa.encoders.tower import Tower
from impresa.errors import CheckpointError, ConfigError, DataError
from impresa.files import replacing, write_atomic
from impresa.models.alignment import AlignmentModel
from impresa.models.build import build_alignment
from impresa.models.embedder import EmbeddingModel
from impresa.run_files import BACKBONES, CONFIG, GOLDEN, MANIFEST, PREPROCESSING, TOKENIZER, WEIGHTS

CHECKED_FILES = (WEIGHTS, PREPROCESSING, GOLDEN)
CHECKED_FOLDERS = (TOKENIZER, BACKBONES)

FORMAT = 1
SMALLEST_GOLDEN_COSINE = 0.999


def save_preparation(
    run_dir: Path,
    config: ExperimentConfig,
    tokenizer: Tokenizer,
    image_transform: ImageTransform,
    audio_transform: AudioTransform | None = None,
) -> None:
    """Write what is known before the training: config, tokenizer and preprocessing."""
    write_atomic(run_dir / CONFIG, to_yaml(config))
    tokenizer.save(run_dir / TOKENIZER)
    transforms = {"image": image_transform.to_dict()}
    if audio_transform is not None:
        transforms["audio"] = audio_transform.to_dict()
    write_atomic(run_dir / PREPROCESSING, json.dumps(transforms, indent=2) + "\n")


def save_run(
    run_dir: Path,
    model: AlignmentModel,
    config: ExperimentConfig,
    tokenizer: Tokenizer,
    image_transform: ImageTransform,
    *,
    audio_transform: AudioTransform | None = None,
    examples: Sequence[Sample] = (),
) -> None:
    """Write a whole run, so that `load` gives the model back.

    Args:
        run_dir: the folder; made if needed.
        model: the weights to keep; left on the CPU in eval mode.
        config: the experiment.
        tokenizer: of the captions.
        image_transform: of the images.
        audio_transform: of the sounds, if the model hears any.
        examples: samples that become golden embeddings.
    """
    (run_dir / MANIFEST).unlink(missing_ok=True)
    save_preparation(run_dir, config, tokenizer, image_transform, audio_transform)
    embedder = EmbeddingModel(model, config, tokenizer, image_transform, "cpu", audio_transform=audio_transform)
    with replacing(run_dir / WEIGHTS) as path:
        save_model(model, str(path))
    _save_architectures(run_dir, model)
    _save_golden(run_dir / GOLDEN, embedder, examples)
    checksums = {name: _checksum(run_dir / name) for name in _checked(run_dir)}
    write_atomic(run_dir / MANIFEST, json.dumps({"format": FORMAT, "sha256": checksums}, indent=2) + "\n")


def read_run_config(run_dir: Path) -> ExperimentConfig:
    """The experiment of a run.

    Raises:
        CheckpointError: the folder is no run, or its config is damaged.
    """
    if not run_dir.is_dir():
        raise CheckpointError(f"{run_dir}: no such folder; give the run directory that `impresa train` printed")
    if not (run_dir / CONFIG).is_file():
        raise CheckpointError(f"{run_dir}: is no run directory, it has no {CONFIG}; give one that `impresa train` made")
    try:
        return read_config(run_dir / CONFIG)
    except ConfigError as error:
        raise CheckpointError(*(f"{run_dir / CONFIG}: {line}" for line in error.lines)) from error


def load(run_dir: Path | str, device: torch.device | str | None = None) -> EmbeddingModel:
    """The model of a finished run, ready to embed images, texts and sounds.

    The stored golden inputs are embedded again: a cosine below 0.999 to what the training had is an error on the kind
    of device that the run was finished on, and a warning on another.

    Args:
        run_dir: the folder that `impresa train` printed.
        device: where to compute; None stands for a GPU if there is one, else the CPU.

    Raises:
        CheckpointError: the folder is no run, the run is unfinished, or a file is missing or damaged.
    """
    run_dir = Path(run_dir)
    config = read_run_config(run_dir)
    _verify(run_dir)
    try:
        tokenizer = load_tokenizer(run_dir / TOKENIZER)
        transforms = json.loads((run_dir / PREPROCESSING).read_text())
        image_transform = ImageTransform.from_dict(transforms["image"])
        audio_transform = None
        if config.audio_encoder is not None:
            audio_transform = audio_transform_from_dict(transforms["audio"])
        with torch.random.fork_rng(devices=[]):  # the weights drawn here are overwritten
            stored = _with_stored_backbones(config, run_dir)
            model = build_alignment(stored, tokenizer.vocab_size, tokenizer.end_id, load_weights=False)
        model.load_state_dict(_read_weights(run_dir / WEIGHTS))
    except (DataError, SafetensorError, RuntimeError, OSError, ValueError, LookupError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{run_dir}: {reason}; restore the run from a copy, or train it again") from error
    embedder = EmbeddingModel(model, config, tokenizer, image_transform, device, audio_transform=audio_transform)
    _check_golden(run_dir, embedder)
    return embedder


def _read_weights(path: Path) -> dict[str, Tensor]:
    """The state dict; of tensors that share their storage the file has one, and names the others in its metadata."""
    with safe_open(path, framework="pt") as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
        twins: dict[str, str] = file.metadata() or {}
    return weights | {name: weights[kept] for name, kept in twins.items() if kept in weights}


def _verify(run_dir: Path) -> None:
    """Refuse a run that is unfinished or whose files are not those that the training wrote."""
    if not (run_dir / MANIFEST).is_file():
        mend = f"`impresa train --output-dir {run_dir} --resume` finishes it"
        raise CheckpointError(f"{run_dir}: the training has not finished; {mend}")
    try:
        manifest = json.loads((run_dir / MANIFEST).read_text())
        version, checksums = manifest["format"], manifest["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{run_dir / MANIFEST}: is damaged; restore the run from a copy") from error
    if version != FORMAT:
        raise CheckpointError(f"{run_dir}: has format {version}, this version reads {FORMAT}; upgrade impresa")
    for name in {**dict.fromkeys(CHECKED_FILES), **checksums}:
        path = run_dir / name
        if not path.is_file():
            raise CheckpointError(f"{path}: is missing; restore the run from a copy")
        if _checksum(path) != checksums.get(name):
            raise CheckpointError(f"{path}: is not what the training wrote (checksum); restore the run from a copy")


def _checked(run_dir: Path) -> list[str]:
    """Names of the files whose checksums are kept."""
    folders = [path for folder in CHECKED_FOLDERS for path in sorted((run_dir / folder).rglob("*")) if path.is_file()]
    return [*CHECKED_FILES, *(path.relative_to(run_dir).as_posix() for path in folders)]


def _save_architectures(run_dir: Path, model: AlignmentModel) -> None:
    """Write down what pretrained towers are, so that the run needs nothing from where they came."""
    for part, encoder in model.named_children():
        if isinstance(encoder, Tower) and isinstance(encoder.backbone, PretrainedBackbone):
            encoder.backbone.save_architecture(run_dir / BACKBONES / part)


def _with_stored_backbones(config: ExperimentConfig, run_dir: Path) -> ExperimentConfig:
    """The experiment with the run's own descriptions of pretrained towers in place of ids and paths."""
    stored: dict[str, Any] = {}
    for _, part, tower in towers(config):
        folder = run_dir / BACKBONES / part
        if folder.is_dir():
            stored[part] = replace(tower, backbone=str(folder))
    return replace(config, **stored)


def _save_golden(path: Path, embedder: EmbeddingModel, examples: Sequence[Sample]) -> None:
    """Store inputs as they come, before any preprocessing, and their embeddings."""
    largest = 2 * embedder.image_transform.size
    images: list[Tensor] = []
    texts: list[str] = []
    sounds = [sample.audio for sample in examples if sample.audio is not None]
    for sample in examples:
        if sample.image is not None:
            small = sample.image.copy()
            small.thumbnail((largest, largest))
            images.append(torch.from_numpy(np.array(small)).permute(2, 0, 1).contiguous())
        texts += sample.captions[:1]
    tensors = {f"image_{i}": image for i, image in enumerate(images)}
    tensors["image_embeddings"] = embedder.encode_image(images)
    tensors["text_embeddings"] = embedder.encode_text(texts)
    metadata = {"texts": json.dumps(texts), "device": embedder.device.type}
    if embedder.audio_transform is not None:
        tensors |= {f"audio_{i}": sound.samples for i, sound in enumerate(sounds)}
        tensors["audio_embeddings"] = embedder.encode_audio(sounds)
        metadata["audio_rates_hz"] = json.dumps([sound.rate_hz for sound in sounds])
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata)


def _check_golden(run_dir: Path, embedder: EmbeddingModel) -> None:
    try:
        with safe_open(run_dir / GOLDEN, framework="pt") as file:
            metadata: dict[str, Any] = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
    except SafetensorError as error:
        raise CheckpointError(f"{run_dir / GOLDEN}: {error}; restore the run from a copy") from error
    images = [tensors[f"image_{i}"] for i in range(len(tensors["image_embeddings"]))]
    pairs = [
        (embedder.encode_image(images), tensors["image_embeddings"]),
        (embedder.encode_text(json.loads(metadata["texts"])), tensors["text_embeddings"]),
    ]
    if embedder.audio_transform is not None:
        rates_hz = json.loads(metadata["audio_rates_hz"])
        sounds = [Clip(tensors[f"audio_{i}"], rate_hz) for i, rate_hz in enumerate(rates_hz)]
        pairs.append((embedder.encode_audio(sounds), tensors["audio_embeddings"]))
    worst = min((_smallest_cosine(now, then) for now, then in pairs if len(then)), default=1.0)
    if worst >= SMALLEST_GOLDEN_COSINE:
        return
    fault = f"{run_dir}: embeddings differ from those of the training (cosine {worst:.4f})"
    if embedder.device.type == metadata["device"]:
        raise CheckpointError(f"{fault}; use the versions that environment.json names, or train the run again")
    there, here = metadata["device"], embedder.device.type
    warnings.warn(f"{fault}, which was finished on {there}; this is {here}", stacklevel=3)


def _smallest_cosine(a: Tensor, b: Tensor) -> float:
    return F.cosine_similarity(a, b).min().item()


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
