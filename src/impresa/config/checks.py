"""Rules that cross fields and parts, and the switches whose part is not built yet.

Each rule yields a `Fault` under the engine's key; other keys that its text speaks of stand in backticks, so that the
line can be told in either dialect.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace

from impresa.config.dialects import both_names
from impresa.config.effects import check_effects
from impresa.config.experiment import (
    DecoderConfig,
    EncoderConfig,
    ExperimentConfig,
    FusionConfig,
    GenerationConfig,
    Modality,
)
from impresa.config.faults import Fault, listed, raise_faults, show
from impresa.config.memory_vlm import MemoryVLMConfig

FROM_SCRATCH: dict[Modality, str] = {"image": "vit", "text": "transformer", "audio": "spectrogram"}
"""The backbone of each modality that is trained from scratch; any other name is a pretrained one."""

_PERCEIVER = ("use_perceiver", "perceiver_num_latents", "perceiver_num_layers", "perceiver_num_heads")
_IMAGE_ONLY = ("pre_norm", "patch_bias", "memory", "use_mrl", "mrl_dimensions")
_UNUSABLE: dict[Modality, tuple[str, ...]] = {
    "image": ("vocab_size", "max_len", "audio_max_seconds"),
    "text": (*_IMAGE_ONLY, *_PERCEIVER, "patch_size", "audio_max_seconds"),
    "audio": (*_IMAGE_ONLY, "vocab_size", "max_len"),
}
"""Fields of `EncoderConfig` that mean nothing for a modality."""
_SCRATCH_ONLY = (
    *("dim", "depth", "num_heads", "mlp_ratio", "activation", "pre_norm", "patch_bias", "drop_rate", "attn_drop_rate"),
    *("patch_size", "vocab_size"),
)
"""Fields that shape a backbone from scratch and mean nothing for a pretrained one."""
_POOLINGS: dict[Modality, dict[bool, tuple[str, ...]]] = {
    "image": {True: ("auto", "cls", "mean"), False: ("auto", "cls", "mean")},
    "text": {True: ("auto", "eot", "mean"), False: ("auto", "cls", "mean", "eot")},
    "audio": {True: ("auto", "mean"), False: ("auto", "cls", "mean")},
}
"""`pooling` by modality and by whether the backbone is from scratch."""
FUSED_PAIR = "image+audio-text"
"""The pair of the embedding that image and sound are fused into, and the caption."""
_QWEN_ONLY = ("model", "load_in_4bit", "use_lora", "lora", "freeze", "use_trm_recursion")
_TRM_ONLY = ("dim", "num_heads", "mlp_ratio", "vocab_size")
_MIN_VOCABULARY = 259
"""All bytes, and the start, end and padding token."""
_MIN_CAPTION_TOKENS = 3
_NUM_MELS = 128
LEAST_TEMPERATURE = 1e-3
"""Of sampling: what scores are divided by; much less overflows, and only the likeliest token is drawn anyway."""


def check_guide(config: MemoryVLMConfig) -> Iterator[Fault]:
    """The one rule of the Memory-VLM dialect that its translation does not keep."""
    data, model = config.training.data.image_size, config.model.image_size
    if data != model:
        yield Fault("training.data.image_size", f"{data} is not `model.image_size`, {model}; leave it out")


def check_experiment(config: ExperimentConfig) -> Iterator[Fault]:
    """All rules that cross fields or parts."""
    for modality, part, tower in towers(config):
        yield from _check_tower(modality, part, tower)
    yield from _check_image_size(config)
    yield from _check_embedding(config)
    yield from _check_matryoshka(config.vision_encoder)
    yield from _check_losses(config)
    yield from _check_fusion(config)
    yield from _check_decoder(config)
    yield from _check_dataset(config)
    yield from _check_optimization(config)
    yield from _check_checkpoint(config)
    yield from check_effects(config)


def towers(config: ExperimentConfig) -> Iterator[tuple[Modality, str, EncoderConfig]]:
    """Modality, key and config of each tower that the experiment has; with a decoder there is none for text."""
    yield "image", "vision_encoder", config.vision_encoder
    if config.decoder is None:
        yield "text", "text_encoder", config.text_encoder
    if config.audio_encoder is not None:
        yield "audio", "audio_encoder", config.audio_encoder


def is_from_scratch(modality: Modality, tower: EncoderConfig) -> bool:
    return tower.backbone == FROM_SCRATCH[modality]


def _check_tower(modality: Modality, part: str, tower: EncoderConfig) -> Iterator[Fault]:
    scratch = is_from_scratch(modality, tower)
    if tower.backbone in FROM_SCRATCH.values() and not scratch:
        mend = f"use {FROM_SCRATCH[modality]} or a pretrained one"
        yield Fault(f"{part}.backbone", f"{tower.backbone} is not for {modality}; {mend}")
        return
    for name in _changed(tower, EncoderConfig(), _UNUSABLE[modality]):
        yield Fault(f"{part}.{name}", f"means nothing for {modality}; leave it out")
    if tower.pooling not in _POOLINGS[modality][scratch]:
        mend = f"use {listed(_POOLINGS[modality][scratch])}"
        yield Fault(f"{part}.pooling", f"{tower.pooling} is not for {modality} by {tower.backbone}; {mend}")
    yield from (_check_scratch if scratch else _check_pretrained)(modality, part, tower)


def _check_scratch(modality: Modality, part: str, tower: EncoderConfig) -> Iterator[Fault]:
    yield from _check_heads(f"{part}.num_heads", tower.num_heads, f"{part}.dim", tower.dim)
    if tower.use_perceiver:
        yield from _check_heads(f"{part}.perceiver_num_heads", tower.perceiver_num_heads, f"{part}.dim", tower.dim)
    if tower.dim * tower.mlp_ratio < 1:
        yield Fault(f"{part}.mlp_ratio", f"{tower.mlp_ratio} leaves the MLPs no hidden width; make it larger")
    if modality == "text" and tower.vocab_size < _MIN_VOCABULARY:
        yield Fault(f"{part}.vocab_size", f"{tower.vocab_size} cannot hold all bytes; at least {_MIN_VOCABULARY}")
    if modality == "text" and tower.max_len < _MIN_CAPTION_TOKENS:
        yield Fault(f"{part}.max_len", f"{tower.max_len} leaves no room between start and end token; at least 3")
    if modality == "audio" and _NUM_MELS % tower.patch_size:
        yield Fault(f"{part}.patch_size", f"{tower.patch_size} does not divide the {_NUM_MELS} mel bins; 16 does")


def _check_pretrained(modality: Modality, part: str, tower: EncoderConfig) -> Iterator[Fault]:
    # Attention pooling has `num_heads` heads, whatever the backbone.
    used = {"num_heads"} if tower.use_attention_pooling else set()
    unusable = used.union(_UNUSABLE[modality])
    for name in _changed(tower, EncoderConfig(), _SCRATCH_ONLY):
        if name not in unusable:
            yield Fault(f"{part}.{name}", f"is for a backbone from scratch, not for {tower.backbone}; leave it out")
    if tower.memory.enabled and modality == "image":
        fault = f"memory tokens need `{part}.backbone` vit, not {tower.backbone}"
        yield Fault(f"{part}.memory.enabled", f"{fault}; turn it off")


def _check_heads(key: str, heads: int, width_key: str, width: int) -> Iterator[Fault]:
    if width % heads:
        fitting = max(n for n in range(1, min(heads, width) + 1) if width % n == 0)
        yield Fault(key, f"{heads} heads do not divide `{width_key}`, {width}; {fitting} would")


def _check_image_size(config: ExperimentConfig) -> Iterator[Fault]:
    tower, size = config.vision_encoder, config.dataset.image_size
    patch, patch_key = tower.patch_size, "vision_encoder.patch_size"
    if is_from_scratch("image", tower) and size % patch:
        near = max(patch, round(size / patch) * patch)
        yield Fault("dataset.image_size", f"{size} is no multiple of `{patch_key}`, {patch}; {near} would be")


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
    if not tower.use_mrl:
        return
    if not dimensions:
        yield Fault(key, "is empty; name at least one dimension, or turn `vision_encoder.use_mrl` off")
        return
    if list(dimensions) != sorted(set(dimensions), reverse=True):
        ordered = sorted(set(dimensions), reverse=True)
        yield Fault(key, f"{show(dimensions)} does not descend; write {show(ordered)}")
    if max(dimensions) > tower.embed_dim:
        yield Fault(key, f"{max(dimensions)} is above `vision_encoder.embed_dim`, {tower.embed_dim}; leave it out")


def _check_losses(config: ExperimentConfig) -> Iterator[Fault]:
    losses = config.losses
    if losses.contrastive_weight == 0 and not (config.vision_encoder.use_mrl and losses.mrl_weight > 0):
        yield Fault("losses.contrastive_weight", "is 0 and nothing else is trained; it must be above 0")
    if losses.pairs is None:
        return
    if not losses.pairs or len(set(losses.pairs)) < len(losses.pairs):
        yield Fault("losses.pairs", f"{show(losses.pairs)} must name each pair once; null stands for every pair")
    for pair in losses.pairs:
        if "audio" in pair and config.audio_encoder is None:
            yield Fault("losses.pairs", f"{pair} needs an `audio_encoder`; add one or leave the pair out")
    alone = [pair for pair in losses.pairs if pair != FUSED_PAIR]
    if config.audio_encoder is not None and not any("audio" in pair for pair in alone):
        fault = f"{show(losses.pairs)} leaves the embeddings of the `audio_encoder` untrained"
        yield Fault("losses.pairs", f"{fault}; add image-audio or text-audio, or leave the encoder out")
    if FUSED_PAIR in losses.pairs and not any("image" in pair for pair in alone):
        fault = f"{show(losses.pairs)} leaves the embeddings of the `vision_encoder` untrained"
        yield Fault("losses.pairs", f"{fault}; add image-text or image-audio")


def _check_fusion(config: ExperimentConfig) -> Iterator[Fault]:
    fuses = config.decoder is not None or FUSED_PAIR in (config.losses.pairs or ())
    if config.fusion != FusionConfig() and not fuses:
        mend = f"add {FUSED_PAIR} to `losses.pairs`, or leave it at its defaults"
        yield Fault("fusion", f"fuses nothing without {FUSED_PAIR} in `losses.pairs` or a `decoder`; {mend}")
    fusion, default = config.fusion, FusionConfig()
    if fusion.strategy != "cross_attention" and fusion.layers != default.layers:
        yield Fault("fusion.layers", f"is for cross_attention, not for {fusion.strategy}; leave it out")
    for name in ("num_queries", "num_heads"):
        if fusion.strategy == "concat" and getattr(fusion, name) != getattr(default, name):
            yield Fault(f"fusion.{name}", "is for cross_attention and gated, not for concat; leave it out")


def _check_decoder(config: ExperimentConfig) -> Iterator[Fault]:
    decoder, vision = config.decoder, config.vision_encoder
    if decoder is None:
        return
    foreign, other = (_TRM_ONLY, "trm") if decoder.type == "qwen" else (_QWEN_ONLY, "qwen")
    for name in _changed(decoder, DecoderConfig(), foreign):
        yield Fault(f"decoder.{name}", f"is for `decoder.type` {other}, not for {decoder.type}; leave it out")
    if decoder.type == "trm":
        yield from _check_heads("decoder.num_heads", decoder.num_heads, "decoder.dim", decoder.dim)
        if decoder.dim % decoder.num_heads == 0 and decoder.dim // decoder.num_heads % 2:
            fault = f"{decoder.num_heads} heads are {decoder.dim // decoder.num_heads} wide; rotary positions"
            yield Fault("decoder.num_heads", f"{fault} need an even width, so change it or `decoder.dim`")
        if decoder.dim * decoder.mlp_ratio < 1:
            yield Fault("decoder.mlp_ratio", f"{decoder.mlp_ratio} leaves the MLPs no hidden width; make it larger")
    for found in check_generation(decoder.generation):
        yield replace(found, key=f"decoder.generation.{found.key}")
    if decoder.type == "qwen" and decoder.freeze and decoder.use_lora:
        yield Fault("decoder.freeze", "contradicts `decoder.use_lora`, which trains adapters in the model; use one")
    if vision.checkpoint is not None:
        return  # the run says what its tower has; building looks
    if decoder.prefix == "memory" and not vision.memory.enabled:
        yield Fault("decoder.prefix", "memory needs `vision_encoder.memory.enabled` true; turn it on, or use tokens")
    if decoder.prefix == "perceiver" and not vision.use_perceiver:
        yield Fault("decoder.prefix", "perceiver needs `vision_encoder.use_perceiver` true; turn it on, or use tokens")


def check_generation(generation: GenerationConfig) -> Iterator[Fault]:
    """What cannot be, or means nothing, in settings of generation; the keys are bare names."""
    temperature = generation.temperature
    if 0 < temperature < LEAST_TEMPERATURE:
        mend = f"0 takes the likeliest token, anything else is at least {LEAST_TEMPERATURE:g}"
        yield Fault("temperature", f"{temperature:g} is too small to divide by; {mend}")
    if temperature == 0 and generation.top_p < 1:
        yield Fault("top_p", f"{generation.top_p:g} does nothing at temperature 0, which draws nothing; leave it out")


def _check_dataset(config: ExperimentConfig) -> Iterator[Fault]:
    dataset = config.dataset
    if dataset.val_path is None and dataset.val_fraction == 1:
        yield Fault("dataset.val_fraction", "1 leaves nothing to train on; it must be below 1")
    for template in dataset.prompt_templates:
        if template.count("{}") != 1:
            yield Fault("dataset.prompt_templates", f"{show(template)} must hold {{}} once, where the class name goes")
    if not dataset.prompt_templates:
        yield Fault("dataset.prompt_templates", "is empty; give at least one, such as 'a photo of a {}.'")


def _check_optimization(config: ExperimentConfig) -> Iterator[Fault]:
    optimization = config.optimization
    if optimization.scheduler != "constant" and optimization.min_lr > optimization.lr:
        fault = f"{optimization.min_lr} is above `optimization.lr`, {optimization.lr}"
        yield Fault("optimization.min_lr", f"{fault}; the rate ends there, so make it smaller")


def _check_checkpoint(config: ExperimentConfig) -> Iterator[Fault]:
    pattern = config.trainer.checkpoint.filename
    try:
        list(string.Formatter().parse(pattern))
    except ValueError as error:
        yield Fault("trainer.checkpoint.filename", f"{show(pattern)} is no pattern ({error}); close each brace")


def _changed(part: EncoderConfig | DecoderConfig, default: object, names: tuple[str, ...]) -> list[str]:
    """Those of the named fields that do not have their default value."""
    known = {field.name for field in fields(part)}
    return [name for name in names if name in known and getattr(part, name) != getattr(default, name)]


@dataclass(frozen=True)
class Unbuilt:
    """A switch whose part does not exist yet."""

    key: str
    is_on: Callable[[ExperimentConfig], bool]
    mend: str


# fmt: off
NOT_BUILT_YET: tuple[Unbuilt, ...] = (
    Unbuilt("dataset.source", lambda config: config.dataset.source in ("webdataset", "hub"), "shapes, folder, parquet"),
    Unbuilt("dataset.cache_features", lambda config: config.dataset.cache_features, "false"),
    Unbuilt("trainer.strategy", lambda config: config.trainer.strategy in ("fsdp", "deepspeed"), "auto or ddp"),
)
# fmt: on
"""One line per switch; a line goes when its part is there."""


def check_built(config: ExperimentConfig) -> None:
    """Refuse switches whose part is not built yet; for commands that would need the part.

    Raises:
        ConfigError: with one line per switch.
    """
    raise_faults(
        Fault(both_names(switch.key), f"is not built yet; until then it must be {switch.mend}")
        for switch in NOT_BUILT_YET
        if switch.is_on(config)
    )
