"""A model in use in a few lines, for `print(model)`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from impresa.config.describe import listed
from impresa.config.encoder import OURS, EncoderConfig, Modality
from impresa.config.experiment import ExperimentConfig, towers
from impresa.config.losses import FUSED_PAIR
from impresa.encoders.transformer import Block
from impresa.foreign_text import printable

if TYPE_CHECKING:
    from impresa.tasks.base import UsableModel


def description(model: UsableModel) -> str:
    """The run, each part with its width, what comes out, and the size: a line each, a dozen at most."""
    config, origin = model.config, f" of {model.run_dir}" if model.run_dir else ""
    rows = [(str(modality), _tower(model, modality, part, tower)) for modality, part, tower in towers(config)]
    rows += [("decoder", _decoder(model, config)), ("fusion", _fusion(config)), ("embeddings", _embeddings(config))]
    size = sum(parameter.numel() for parameter in model.model.parameters())
    rows.append(("size", f"{size:,} parameters on {model.device}"))
    lines = [f"{name:<10}  {text}" for name, text in rows if text]
    return "\n  ".join([f"{type(model).__name__} {config.name!r}{printable(origin)}", *map(printable, lines)])


def _tower(model: UsableModel, modality: Modality, part: str, tower: EncoderConfig) -> str:
    encoder = getattr(model.model, part)
    own = [module for module in encoder.backbone.modules() if isinstance(module, Block)]
    number = len(own or getattr(encoder.backbone, "blocks", None) or ())
    depth = [f"{number} block{'s' * (number > 1)}"] if number else []
    extras = _extras(tower, stands_below=model.config.decoder is not None)
    return ", ".join([tower.backbone, f"width {encoder.dim}", *depth, *_input(model, modality), *extras])


def _input(model: UsableModel, modality: Modality) -> Iterator[str]:
    preprocessing = model.preprocessing
    if modality == "image":
        yield f"images of {preprocessing.image.size} px"
    elif modality == "text" and preprocessing.texts.max_len < sys.maxsize:
        yield f"texts of up to {preprocessing.texts.max_len} tokens"
    elif modality == "audio" and preprocessing.audio is not None:
        yield f"sounds of up to {preprocessing.audio.max_seconds:g} s"


def _extras(tower: EncoderConfig, *, stands_below: bool) -> Iterator[str]:
    """Further facts of a tower, which may stand below a decoder."""
    if tower.memory.enabled:
        yield f"{tower.memory.num_memory_tokens} memory tokens"
    if tower.use_perceiver:
        yield f"{tower.perceiver_num_latents} Perceiver latents"
    if tower.checkpoint is not None:
        yield f"from {tower.checkpoint}"
    elif stands_below and tower.backbone in OURS:
        yield "trained from scratch with the decoder"


def _decoder(model: UsableModel, config: ExperimentConfig) -> str:
    if (decoder := config.decoder) is None:
        return ""
    name = decoder.type if decoder.type == "trm" else decoder.model
    options = ["LoRA"] if decoder.use_lora else []
    options += [f"up to {decoder.tiles} tiles an image"] if decoder.tiles > 1 else []
    options += [f"up to {config.dataset.max_images} images a question"] if config.dataset.max_images > 1 else []
    width = getattr(model.model, "decoder").hidden_size  # noqa: B009 - not every model has one
    return ", ".join([name, f"width {width}", *options, f"reads {decoder.prefix} of the towers"])


def _fusion(config: ExperimentConfig) -> str:
    fuses = config.audio_encoder is not None and (config.decoder or FUSED_PAIR in (config.losses.pairs or ()))
    what = [f"image and sound, {config.fusion.strategy}"] if fuses else []
    return ", ".join([*what, *(["mlp projector"] if config.fusion.projector == "mlp" else [])])


def _embeddings(config: ExperimentConfig) -> str:
    if config.decoder is not None:
        return ""
    vision = config.vision_encoder
    dims = f"; Matryoshka: {listed(vision.mrl_dimensions, 'and')}" if vision.use_mrl else ""
    return f"{vision.embed_dim} numbers{dims}"
