"""Rules that cross fields and parts.

Each rule yields a `Fault` under the engine's key; other keys in its text are in backticks, so that the line can be
written in either dialect. Keys without an effect have a table of their own, `impresa.config.relevance`.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from math import log2
from pathlib import Path
from typing import get_args

from impresa.config.decoder import GenerationConfig
from impresa.config.describe import Fault, listed, show
from impresa.config.encoder import (
    FROM_SCRATCH,
    OURS,
    TRANSFORMERS,
    EncoderConfig,
    Modality,
    PoolingName,
    has_trained_blocks,
    is_from_scratch,
    is_frozen,
)
from impresa.config.experiment import ExperimentConfig, towers
from impresa.config.losses import FUSED_PAIR
from impresa.config.memory_vlm import MemoryVLMConfig
from impresa.config.types import CheckpointConfig
from impresa.files import inside
from impresa.run_dir.layout import FOLDERS

_NEITHER = ("cls", "eot")
_LACKING = {"vit": ("eot",), "transformer": ("cls",), **dict.fromkeys(("convnet", "bag", "spectrogram"), _NEITHER)}
"""Values of `pooling` whose token a backbone of ours lacks."""
_PRETRAINED_LACKING: dict[Modality, tuple[str, ...]] = {"image": ("eot",), "text": (), "audio": ("eot",)}
_MIN_VOCABULARY = 259
"""All bytes, and the start, end and padding token."""
_NUM_MELS = 128
_MOST_PATCHES, _MOST_PREFIXES = 65_536, 64
"""Of an image, and of an embedding; as with the maxima in `impresa.config.types`, nobody needs to reach them."""
_WIDEST = 100
"""Digits of a number in the name of a checkpoint."""
LEAST_TEMPERATURE = 1e-3
"""Of sampling: the logits are divided by it; much less overflows, and only the likeliest token is drawn anyway."""


def check_guide(config: MemoryVLMConfig) -> Iterator[Fault]:
    """The one rule of the Memory-VLM dialect that its translation does not keep."""
    data, model = config.training.data.image_size, config.model.image_size
    if data != model:
        yield Fault("training.data.image_size", f"{data} is not `model.image_size`, {model}; leave it out")


def check_experiment(config: ExperimentConfig) -> Iterator[Fault]:
    """All rules that cross fields or parts."""
    yield from check_towers(config)
    for check in (_check_embedding, _check_losses, _check_decoder, _check_dataset, _check_training):
        yield from check(config)


def check_towers(config: ExperimentConfig) -> Iterator[Fault]:
    """The rules inside each tower."""
    for modality, part, tower in towers(config):
        yield from _check_tower(modality, part, tower)


def _check_tower(modality: Modality, part: str, tower: EncoderConfig) -> Iterator[Fault]:
    backbone, own = tower.backbone, FROM_SCRATCH[modality]
    if backbone in OURS and backbone not in own:
        fix = f"use {listed([*own, 'a pretrained one'])}"
        yield Fault(f"{part}.backbone", f"{backbone} is not for {modality}; {fix}")
        return
    lacking = _LACKING.get(backbone, _PRETRAINED_LACKING[modality])
    if tower.pooling in lacking:
        fault = f"{tower.pooling} is not for {modality} by {backbone}"
        yield Fault(f"{part}.pooling", f"{fault}; use {listed(p for p in get_args(PoolingName) if p not in lacking)}")
    if tower.lora is not None and tower.checkpoint is None:
        yield from _check_adapted(part, tower)
    if backbone in own:
        yield from _check_scratch(modality, part, tower)
    if backbone != "vit" and tower.memory.enabled and modality == "image":
        fault = f"memory tokens need `{part}.backbone` vit, not {backbone}"
        yield Fault(f"{part}.memory.enabled", f"{fault}; turn it off")


def _check_adapted(part: str, tower: EncoderConfig) -> Iterator[Fault]:
    if tower.freeze is False:
        yield Fault(f"{part}.freeze", f"false contradicts `{part}.lora`, which keeps the backbone as it is; use one")
    if tower.unfreeze_last:
        fault = f"{tower.unfreeze_last} contradicts `{part}.lora`, which trains adapters in place of blocks"
        yield Fault(f"{part}.unfreeze_last", f"{fault}; use one")


def _check_scratch(modality: Modality, part: str, tower: EncoderConfig) -> Iterator[Fault]:
    if tower.backbone in TRANSFORMERS:
        yield from _check_heads(f"{part}.num_heads", tower.num_heads, f"{part}.dim", tower.dim)
        yield from _check_mlp(f"{part}.mlp_ratio", tower.dim, tower.mlp_ratio)
    if tower.use_perceiver:
        yield from _check_heads(f"{part}.perceiver_num_heads", tower.perceiver_num_heads, f"{part}.dim", tower.dim)
    if modality == "image" and (tower.backbone == "convnet" or tower.stem == "conv"):
        yield from _check_halvings(part, tower)
    if modality == "text" and tower.vocab_size < _MIN_VOCABULARY:
        yield Fault(f"{part}.vocab_size", f"{tower.vocab_size} cannot hold all bytes; at least {_MIN_VOCABULARY}")
    if modality == "text" and tower.max_len < 3:
        yield Fault(f"{part}.max_len", f"{tower.max_len} leaves no room between start and end token; at least 3")
    if modality == "audio" and _NUM_MELS % tower.patch_size:
        yield Fault(f"{part}.patch_size", f"{tower.patch_size} does not divide the {_NUM_MELS} mel bins; 16 does")


def _check_heads(key: str, heads: int, width_key: str, width: int) -> Iterator[Fault]:
    if width % heads:
        fitting = max(n for n in range(1, min(heads, width) + 1) if width % n == 0)
        yield Fault(key, f"{heads} heads do not divide `{width_key}`, {width}; {fitting} would")


def _check_halvings(part: str, tower: EncoderConfig) -> Iterator[Fault]:
    side = tower.patch_size
    if side < 2 or side & (side - 1):
        by = "a convnet" if tower.backbone == "convnet" else f"`{part}.stem` conv"
        fault = f"{side} cannot be reached by halving, as {by} does; {2 ** max(round(log2(side)), 1)} can"
        yield Fault(f"{part}.patch_size", fault)


def _check_mlp(key: str, width: int, ratio: float) -> Iterator[Fault]:
    if width * ratio < 1:
        yield Fault(key, f"{ratio} leaves the MLPs no hidden width; make it larger")


def _check_embedding(config: ExperimentConfig) -> Iterator[Fault]:
    if config.decoder is not None:
        return  # it reads tokens, nothing is embedded
    (_, first, reference), *rest = towers(config)
    for _, part, tower in rest:
        if tower.embed_dim != reference.embed_dim:
            fault = f"{tower.embed_dim} is not `{first}.embed_dim`, {reference.embed_dim}"
            yield Fault(f"{part}.embed_dim", f"{fault}; all towers share one space, so set them alike")


def _check_matryoshka(tower: EncoderConfig) -> Iterator[Fault]:
    key, dimensions = "vision_encoder.mrl_dimensions", tower.mrl_dimensions
    ordered = sorted(set(dimensions), reverse=True)
    if not dimensions:
        yield Fault(key, "is empty; name at least one dimension, or turn `vision_encoder.use_mrl` off")
        return
    if len(dimensions) > _MOST_PREFIXES:
        yield Fault(key, f"has {len(dimensions)} dimensions, each of which is compared; at most {_MOST_PREFIXES}")
    if list(dimensions) != ordered:
        yield Fault(key, f"{show(dimensions)} does not descend; write {show(ordered)}")
    if ordered[0] > tower.embed_dim:
        yield Fault(key, f"{ordered[0]} is above `vision_encoder.embed_dim`, {tower.embed_dim}; leave it out")


def _check_losses(config: ExperimentConfig) -> Iterator[Fault]:
    losses, pairs = config.losses, config.losses.pairs
    if config.vision_encoder.use_mrl:
        yield from _check_matryoshka(config.vision_encoder)
    if losses.contrastive_weight == 0 and not (config.vision_encoder.use_mrl and losses.mrl_weight > 0):
        yield Fault("losses.contrastive_weight", "is 0 and nothing else is trained; it must be above 0")
    if losses.learn_temperature and losses.temperature is not None and losses.temperature * losses.max_logit_scale < 1:
        fault = f"{losses.max_logit_scale:g} is below the start, 1 / `losses.temperature`"
        yield Fault("losses.max_logit_scale", f"{fault}; raise it to {1 / losses.temperature:g}, or start warmer")
    if pairs is None:
        return
    if not pairs or len(set(pairs)) < len(pairs):
        yield Fault("losses.pairs", f"{show(pairs)} must name each pair once; null stands for every pair")
    for pair in pairs:
        if "audio" in pair and config.audio_encoder is None:
            yield Fault("losses.pairs", f"{pair} needs an `audio_encoder`; add one or leave the pair out")
    alone = [pair for pair in pairs if pair != FUSED_PAIR]
    if config.audio_encoder is not None and not any("audio" in pair for pair in alone):
        fault = f"{show(pairs)} leaves the embeddings of the `audio_encoder` untrained"
        yield Fault("losses.pairs", f"{fault}; add image-audio or text-audio, or leave the encoder out")
    if FUSED_PAIR in pairs and not any("image" in pair for pair in alone):
        fault = f"{show(pairs)} leaves the embeddings of the `vision_encoder` untrained"
        yield Fault("losses.pairs", f"{fault}; add image-text or image-audio")


def _check_decoder(config: ExperimentConfig) -> Iterator[Fault]:
    decoder, vision = config.decoder, config.vision_encoder
    if decoder is None:
        return
    if decoder.type == "trm":
        yield from _check_heads("decoder.num_heads", decoder.num_heads, "decoder.dim", decoder.dim)
        head_dim = decoder.dim // decoder.num_heads
        if decoder.dim % decoder.num_heads == 0 and head_dim % 2:
            fault = f"{decoder.num_heads} heads are {head_dim} wide; rotary positions need an even width"
            yield Fault("decoder.num_heads", f"{fault}, so change it or `decoder.dim`")
        yield from _check_mlp("decoder.mlp_ratio", decoder.dim, decoder.mlp_ratio)
    if decoder.system_prompt is not None and not decoder.system_prompt.strip():
        yield Fault("decoder.system_prompt", "is blank; say something, or leave it out")
    for found in chain(check_generation(decoder.generation), idle_generation(decoder.generation)):
        yield replace(found, key=f"decoder.generation.{found.key}")
    if decoder.load_in_4bit and decoder.load_in_8bit:
        yield Fault("decoder.load_in_8bit", "contradicts `decoder.load_in_4bit`; use one of them")
    if decoder.is_pretrained and decoder.freeze and decoder.use_lora:
        yield Fault("decoder.freeze", "contradicts `decoder.use_lora`, which trains adapters in the model; use one")
    if decoder.tiles > 1 and config.dataset.augmentation != "none":
        fault = f"{decoder.tiles} cuts images, and `dataset.augmentation` {config.dataset.augmentation}"
        yield Fault("decoder.tiles", f"{fault} makes them small squares first; set that to none")
    if vision.checkpoint is not None:
        return  # the run says what its tower has; building looks
    if decoder.prefix == "cls_patches" and "cls" in _LACKING.get(vision.backbone, ()):
        yield Fault("decoder.prefix", f"cls_patches, but a {vision.backbone} has no class token; use tokens")
    if decoder.prefix == "memory" and not vision.memory.enabled:
        yield Fault("decoder.prefix", "memory needs `vision_encoder.memory.enabled` true; turn it on, or use tokens")
    if decoder.prefix == "perceiver" and not vision.use_perceiver:
        yield Fault("decoder.prefix", "perceiver needs `vision_encoder.use_perceiver` true; turn it on, or use tokens")


def check_generation(generation: GenerationConfig) -> Iterator[Fault]:
    """Settings of generation that are impossible; the keys are bare names."""
    temperature = generation.temperature
    if 0 < temperature < LEAST_TEMPERATURE:
        fix = f"0 takes the likeliest token, anything else is at least {LEAST_TEMPERATURE:g}"
        yield Fault("temperature", f"{temperature:g} is too small to divide by; {fix}")


def idle_generation(generation: GenerationConfig) -> Iterator[Fault]:
    """Settings of generation that have no effect beside the others; the keys are bare names."""
    for key, neutral in (("top_p", 1), ("top_k", 0)):
        value = getattr(generation, key)
        if generation.temperature == 0 and value != neutral:
            yield Fault(key, f"{value:g} does nothing at temperature 0, which draws nothing; leave it out")


def _check_dataset(config: ExperimentConfig) -> Iterator[Fault]:
    dataset, patch = config.dataset, config.vision_encoder.patch_size
    if is_from_scratch("image", config.vision_encoder) and dataset.image_size % patch:
        fault = f"{dataset.image_size} is no multiple of `vision_encoder.patch_size`, {patch}"
        yield Fault("dataset.image_size", f"{fault}; {max(patch, round(dataset.image_size / patch) * patch)} would be")
    elif is_from_scratch("image", config.vision_encoder) and (dataset.image_size // patch) ** 2 > _MOST_PATCHES:
        fault = f"{dataset.image_size} makes more than {_MOST_PATCHES} patches of `vision_encoder.patch_size`, {patch}"
        yield Fault("dataset.image_size", f"{fault}; make patches larger or images smaller")
    if dataset.val_path is None and dataset.val_fraction == 1:
        yield Fault("dataset.val_fraction", "1 leaves nothing to train on; it must be below 1")
    for name in ("scale", "ratio"):
        bounds = getattr(dataset.augmentation_options, name)
        if bounds is not None and bounds[0] > bounds[1]:
            fault = f"{show(bounds)} begins with the larger one; write {show(bounds[::-1])}"
            yield Fault(f"dataset.augmentation_options.{name}", fault)
    for template in dataset.prompt_templates:
        if template.count("{}") != 1:
            yield Fault("dataset.prompt_templates", f"{show(template)} must hold {{}} once, where the class name goes")
    if not dataset.prompt_templates:
        yield Fault("dataset.prompt_templates", "is empty; give at least one, such as 'a photo of a {}.'")
    if dataset.cache_features is not None:
        yield from _check_kept_features(config)


def _check_kept_features(config: ExperimentConfig) -> Iterator[Fault]:
    """Features that are kept once must be the same at every step."""
    key, part, tower = "dataset.cache_features", "vision_encoder", config.vision_encoder
    if config.dataset.augmentation != "none":
        fault = f"keeps one view of each image, and `dataset.augmentation` {config.dataset.augmentation} draws new ones"
        yield Fault(key, f"{fault}; set that to none, or leave this out")
    if not is_frozen(tower):
        yield Fault(key, f"needs an image tower that stays as it is; set `{part}.freeze`=true, or leave this out")
    elif tower.unfreeze_last:
        fault = f"needs a tower that stays as it is, and `{part}.unfreeze_last` trains blocks of it"
        yield Fault(key, f"{fault}; set that to 0, or leave this out")
    elif has_trained_blocks(tower):
        yield Fault(key, f"needs a tower that stays as it is, and `{part}.lora` adapts it; leave one of them out")
    if config.decoder is not None:
        several = {"dataset.max_images": config.dataset.max_images, "decoder.tiles": config.decoder.tiles}
        for other, most in several.items():
            if most > 1:
                yield Fault(key, f"keeps one square of each sample, and `{other}` is {most}; leave one of them out")


def _check_training(config: ExperimentConfig) -> Iterator[Fault]:
    optimization = config.optimization
    if optimization.scheduler != "constant" and optimization.min_lr > optimization.lr:
        fault = f"{optimization.min_lr} is above `optimization.lr`, {optimization.lr}"
        yield Fault("optimization.min_lr", f"{fault}; the rate ends there, so make it smaller")
    yield from _check_checkpoint_names(config.trainer.checkpoint)
    if config.trainer.strategy == "fsdp":
        yield from (Fault("trainer.strategy", f"fsdp {fault}, or use ddp") for fault in beside_fsdp(config))


def beside_fsdp(config: ExperimentConfig) -> Iterator[str]:
    """Settings that a model that is shared out cannot be combined with: the reason, and another fix than `ddp`."""
    optimization, decoder = config.optimization, config.decoder
    if optimization.optimizer == "muon":
        yield "has parts of matrices, and `optimization.optimizer` muon needs them whole; use adamw"
    if optimization.optimizer == "adamw8bit":
        yield "has parts of matrices, and `optimization.optimizer` adamw8bit rounds whole ones; use adamw"
    if optimization.precision == "16-mixed":
        fault = "has no loss scale that all processes agree on, which `optimization.precision` 16-mixed needs"
        yield f"{fault}; use bf16-mixed"
    if optimization.chunk_size is not None:
        yield "would gather each block again for every chunk of `optimization.chunk_size`; leave it out"
    if config.trainer.compile != "off":
        yield "gathers weights between the blocks, which `trainer.compile` does not know of; leave it out"
    if config.dataset.cache_features is not None:
        yield "gathers towers whole, and `dataset.cache_features` runs parts of one; leave it out"
    if decoder is not None and decoder.is_quantized:
        name = "load_in_8bit" if decoder.load_in_8bit else "load_in_4bit"
        yield f"cannot take apart the packed weights of `decoder.{name}`; leave it out"


def _check_checkpoint_names(checkpoint: CheckpointConfig) -> Iterator[Fault]:
    """Checkpoints stay in the run, and out of folders that are written anew; a config may be a stranger's."""
    folder, pattern = checkpoint.dirpath, checkpoint.filename
    try:
        inside(Path(), folder)
    except ValueError as error:
        fix = "name a folder in the run directory, which --output-dir puts anywhere"
        yield Fault("trainer.checkpoint.dirpath", f"{error}; {fix}")
    if taken := [part for part in Path(folder).parts[:1] if part in FOLDERS]:
        yield Fault("trainer.checkpoint.dirpath", f"{taken[0]} is a folder of the run itself; name another folder")
    try:
        inside(Path(), pattern, directly=True)
    except ValueError as error:
        yield Fault("trainer.checkpoint.filename", f"{error}; write one like {{epoch:03d}}-{{step:07d}}")
    try:
        widths = [re.findall(r"\d+", format or "") for _, _, format, _ in string.Formatter().parse(pattern)]
    except ValueError as error:
        yield Fault("trainer.checkpoint.filename", f"{show(pattern)} is no pattern ({error}); close each brace")
    else:
        if any(int(width) > _WIDEST for width in chain(*widths)):
            yield Fault("trainer.checkpoint.filename", f"{show(pattern)} is too wide; use at most {_WIDEST} digits")
