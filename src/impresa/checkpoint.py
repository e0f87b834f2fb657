"""The run directory, as far as using a trained model needs it: written and read without the training engine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from impresa.config import read_config, to_yaml
from impresa.config.checks import towers
from impresa.config.experiment import DecoderConfig, ExperimentConfig
from impresa.data.batch import Sample
from impresa.data.chat import ChatFormat, load_chat
from impresa.data.images import ImageTransform
from impresa.data.preparation import AudioTransform, Tokenizer, audio_transform_from_dict, load_tokenizer
from impresa.decoders.lora import is_adapter
from impresa.encoders.pretrained import PretrainedBackbone
from impresa.encoders.tower import Tower
from impresa.errors import CheckpointError, ConfigError, DataError
from impresa.files import write_atomic
from impresa.golden import check_golden, save_golden
from impresa.hub import digest, is_folder
from impresa.manifest import verify, write_manifest
from impresa.models.alignment import AlignmentModel
from impresa.models.answerer import AnsweringModel
from impresa.models.build import build_alignment, build_vlm, keeps_language_model_elsewhere
from impresa.models.embedder import EmbeddingModel
from impresa.models.vlm import VisionLanguageModel
from impresa.run_files import BACKBONES, CONFIG, MANIFEST, PREPROCESSING, TOKENIZER, WEIGHTS
from impresa.weights import read_weights, trained_state, with_stored_backbone, write_weights

LANGUAGE_MODEL = f"{BACKBONES}/decoder"
"""Where a run says which language model it stands on, and holds its architecture if it has trained all of it."""
IDENTITY = "identity.json"
_RECURSION, _BASE = "decoder.recursion.", "decoder.model."
"""Names in a vision-language model of the recursion behind its language model, and of that itself."""


def save_preparation(
    run_dir: Path,
    config: ExperimentConfig,
    tokenizer: Tokenizer | ChatFormat,
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
    model: AlignmentModel | VisionLanguageModel,
    config: ExperimentConfig,
    tokenizer: Tokenizer | ChatFormat,
    image_transform: ImageTransform,
    *,
    audio_transform: AudioTransform | None = None,
    examples: Sequence[Sample] = (),
    device: torch.device | str = "cpu",
) -> None:
    """Write a whole run, so that `load` gives the model back.

    Of a vision-language model the encoders are stored whole, wherever they came from; a language model that was frozen
    is not, but by name and identity.

    Args:
        run_dir: the folder; made if needed.
        model: the weights to keep; left in eval mode, in float32 but for a frozen language model, on `device`.
        config: the experiment.
        tokenizer: of the texts.
        image_transform: of the images.
        audio_transform: of the sounds, if the model hears any.
        examples: samples that become golden inputs.
        device: where to compute what the model makes of them; `load` is strict on the same kind of device.
    """
    (run_dir / MANIFEST).unlink(missing_ok=True)
    save_preparation(run_dir, config, tokenizer, image_transform, audio_transform)
    write_weights(run_dir / WEIGHTS, _state_to_keep(model))
    _save_architectures(run_dir, model, config)
    user = _in_use(model, config, tokenizer, image_transform, device, audio_transform=audio_transform)
    save_golden(run_dir, user, examples)
    write_manifest(run_dir)


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


def read_transforms(run_dir: Path) -> tuple[ImageTransform, AudioTransform | None]:
    """The preprocessing of images, and of sounds if the run's model hears any.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    try:
        transforms = json.loads((run_dir / PREPROCESSING).read_text())
        audio = transforms.get("audio")
        return ImageTransform.from_dict(transforms["image"]), audio and audio_transform_from_dict(audio)
    except (DataError, OSError, ValueError, LookupError, TypeError) as error:
        raise CheckpointError(f"{run_dir / PREPROCESSING}: {error}; restore the run from a copy") from error


def load(run_dir: Path | str, device: torch.device | str | None = None) -> EmbeddingModel | AnsweringModel:
    """The model of a finished run, ready to embed images, texts and sounds, or to answer questions about images.

    The stored golden inputs are run again: a cosine below 0.999 to what the training had is an error on the kind of
    device that the run was finished on, and a warning on another.

    Args:
        run_dir: the folder that `impresa train` printed.
        device: where to compute; None stands for a GPU if there is one, else the CPU.

    Returns:
        An `EmbeddingModel` of an alignment, an `AnsweringModel` of a run with a decoder.

    Raises:
        CheckpointError: the folder is no run, the run is unfinished, or a file is missing or damaged.
        ConfigError: the language model that the run stands on cannot be read.
    """
    run_dir = Path(run_dir)
    config = read_run_config(run_dir)
    verify(run_dir)
    image_transform, audio_transform = read_transforms(run_dir)
    try:
        stored = _with_stored_backbones(config, run_dir)
        with torch.random.fork_rng(devices=[]):  # the weights drawn here are overwritten
            tokenizer, model = (_load_vlm if config.decoder else _load_alignment)(stored, run_dir)
    except (DataError, SafetensorError, RuntimeError, OSError, ValueError, LookupError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{run_dir}: {reason}; restore the run from a copy, or train it again") from error
    user = _in_use(model, config, tokenizer, image_transform, device, audio_transform=audio_transform)
    check_golden(run_dir, user)
    return user


def load_embedder(run_dir: Path | str, device: torch.device | str | None = None) -> EmbeddingModel:
    """`load` for those who need embeddings.

    Raises:
        CheckpointError: as `load`; the run is one of a vision-language model.
    """
    found = load(run_dir, device)
    if isinstance(found, EmbeddingModel):
        return found
    raise CheckpointError(f"{run_dir}: answers questions and embeds nothing; name the run of an alignment")


def load_answerer(run_dir: Path | str, device: torch.device | str | None = None) -> AnsweringModel:
    """`load` for those who need answers.

    Raises:
        CheckpointError: as `load`; the run is one of an alignment.
    """
    if read_run_config(Path(run_dir)).decoder is None:
        raise CheckpointError(f"{run_dir}: is an alignment and answers nothing; train one with a decoder on it")
    found = load(run_dir, device)
    assert isinstance(found, AnsweringModel)
    return found


def start_from(model: VisionLanguageModel, run_dir: Path) -> int:
    """Give a new model the weights of a finished vision-language run, as a second stage.

    What a second stage may have beyond them stays as it is: adapters, recursion, and a language model that was frozen
    in the run and is trained now. That this is the same one, `revision_of_language_model` tells.

    Returns:
        The number of tensors taken over.

    Raises:
        CheckpointError: the run has weights that the model has no place for, or that it would not keep; or the model
            has others that the run has not, which would stay at random.
    """
    try:
        weights = read_weights(run_dir / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{run_dir / WEIGHTS}: {error}; restore the run from a copy") from error
    own, kept = model.state_dict(), _state_to_keep(model)
    for name, tensor in weights.items():
        if name not in own or own[name].shape != tensor.shape:
            raise CheckpointError(f"decoder.init_from: {run_dir} has {name}, which this model has not; make them alike")
        if name not in kept:
            fault = f"{run_dir} has trained {name}, which is frozen here and would not be kept"
            raise CheckpointError(f"decoder.init_from: {fault}; train it here too")
    # These are pretrained, or change nothing at first.
    may_be_new = [_BASE] if (run_dir / LANGUAGE_MODEL / IDENTITY).is_file() else []
    may_be_new += [] if any(name.startswith(_RECURSION) for name in weights) else [_RECURSION]
    for name in sorted(kept.keys() - weights.keys()):
        if not (is_adapter(name) or name.startswith(tuple(may_be_new))):
            fault = f"this model has {name}, which {run_dir} has not and which would stay at random"
            raise CheckpointError(f"decoder.init_from: {fault}; make them alike")
    model.load_state_dict(weights, strict=False)
    return len(weights)


def _load_alignment(config: ExperimentConfig, run_dir: Path) -> tuple[Any, Any]:
    tokenizer = load_tokenizer(run_dir / TOKENIZER)
    model = build_alignment(config, tokenizer.vocab_size, tokenizer.end_id, load_weights=False)
    model.load_state_dict(read_weights(run_dir / WEIGHTS))
    return tokenizer, model


def _load_vlm(config: ExperimentConfig, run_dir: Path) -> tuple[Any, Any]:
    assert config.decoder is not None
    weights = read_weights(run_dir / WEIGHTS)
    chat = load_chat(run_dir / TOKENIZER)
    revision = revision_of_language_model(run_dir, config.decoder)
    model = build_vlm(config, chat.vocab_size, load_weights=False, revision=revision)
    other = weights.keys() ^ _state_to_keep(model).keys()
    if other:
        raise CheckpointError(
            f"{run_dir / WEIGHTS}: does not fit the config ({min(other)}); restore the run from a copy"
        )
    model.load_state_dict(weights, strict=False)
    return chat, model


def revision_of_language_model(run_dir: Path, decoder: DecoderConfig) -> str | None:
    """The commit to load from the hub, so that the language model is the one of the training though its owner has
    changed it since; None where that needs none.

    Args:
        run_dir: a run; one that holds its language model itself needs none.
        decoder: what names the language model, of this run or of one that goes on from it.

    Raises:
        CheckpointError: the folder that `decoder` names has another one, whatever its name.
        ConfigError: there is none.
    """
    if not (run_dir / LANGUAGE_MODEL / IDENTITY).is_file():
        return None
    then = json.loads((run_dir / LANGUAGE_MODEL / IDENTITY).read_text())
    kind, _, commit = then["identity"].partition(" ")
    if not is_folder(decoder.model) and kind == "commit":
        return str(commit)
    if digest("decoder.model", decoder.model) not in (then["identity"], then.get("content")):
        fault = f"{decoder.model} is not the language model that the run was trained with"
        mend = "put that back, or name it in decoder.model (of a finished run: in its config.yaml)"
        raise CheckpointError(f"{run_dir}: {fault}; {mend}")
    return None


def _state_to_keep(model: AlignmentModel | VisionLanguageModel) -> dict[str, torch.Tensor]:
    """All weights; of a decoder those that are trained."""
    state = model.state_dict()
    if isinstance(model, AlignmentModel):
        return state
    trained = {f"decoder.{name}" for name in trained_state(model.decoder)}
    return {name: value for name, value in state.items() if not name.startswith("decoder.") or name in trained}


def _in_use(model: AlignmentModel | VisionLanguageModel, *parts: Any, **more: Any) -> EmbeddingModel | AnsweringModel:
    """The model with what users need beside it; arguments as of these classes, which have the same."""
    if isinstance(model, AlignmentModel):
        return EmbeddingModel(model, *parts, **more)
    return AnsweringModel(model, *parts, **more)


def _save_architectures(run_dir: Path, model: AlignmentModel | VisionLanguageModel, config: ExperimentConfig) -> None:
    """Write down what pretrained parts are, so that the run needs nothing from where they came, or knows what."""
    for part, encoder in model.named_children():
        if isinstance(encoder, Tower) and isinstance(encoder.backbone, PretrainedBackbone):
            encoder.backbone.save_architecture(run_dir / BACKBONES / part)
    decoder = config.decoder
    if decoder is None or decoder.type != "qwen":
        return
    language_decoder: Any = model.decoder
    folder = run_dir / LANGUAGE_MODEL
    folder.mkdir(parents=True, exist_ok=True)
    if keeps_language_model_elsewhere(decoder):
        known = _identity(decoder.model, language_decoder.revision)
        write_atomic(folder / IDENTITY, json.dumps(known, indent=2) + "\n")
    else:
        language_decoder.model.config.save_pretrained(folder)


def _identity(name: str, commit: str | None) -> dict[str, str]:
    """What tells a loaded language model from others of the same name: the digest of a folder; of one from the hub the
    commit, and the digest for those who will give a folder in its place."""
    content = digest("decoder.model", name, commit)
    if commit is None:
        return {"model": name, "identity": content}
    return {"model": name, "identity": f"commit {commit}", "content": content}


def _with_stored_backbones(config: ExperimentConfig, run_dir: Path) -> ExperimentConfig:
    """The experiment with the run's own descriptions of pretrained parts in place of ids and paths."""
    changed: dict[str, Any] = {part: with_stored_backbone(tower, run_dir, part) for _, part, tower in towers(config)}
    folder = run_dir / LANGUAGE_MODEL
    if config.decoder is not None and (folder / "config.json").is_file():
        changed["decoder"] = replace(config.decoder, model=str(folder))
    return replace(config, **changed)
