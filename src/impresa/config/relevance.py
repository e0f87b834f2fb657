"""Keys that have an effect only under a condition: two tables say where they have none, and why.

Most of them are refused there. Those that one sets for the other arm of an ablation, or inherits from a config that is
made for both arms, are only warned of.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from impresa.config.decoder import DecoderConfig
from impresa.config.describe import Fault, listed
from impresa.config.experiment import (
    FUSED_PAIR,
    OURS,
    EncoderConfig,
    ExperimentConfig,
    Modality,
    has_trained_blocks,
    is_from_scratch,
    is_frozen,
    towers,
)
from impresa.config.paths import EMBEDDED
from impresa.config.tree import leaves, lookup, to_tree


@dataclass(frozen=True)
class Rule:
    """Keys that have no effect under a condition."""

    keys: tuple[str, ...]
    """Keys and sections; `section.*` stands for each key below the section."""
    idle: Callable[[Any], bool]
    """True for an experiment where they have no effect; called only if one of them does not have its default."""
    why: str
    """Why they have none; names in braces are read from the config."""
    fix: str = "leave it out"
    """The fix, where the keys are refused."""
    is_control: bool = False
    """The computation is another one with the same result but for rounding: the keys serve an ablation as control."""


OWN = ("checkpoint", "freeze", "unfreeze_last", "activation_checkpointing")
"""Settings of how a tower of another run is used, not of what it is: these are no settings of that run."""
_LATENTS = ("perceiver_num_latents", "perceiver_num_layers", "perceiver_num_heads")
_PERCEIVER = ("use_perceiver", *_LATENTS)
_IMAGE_ONLY = ("pre_norm", "patch_bias", "stem", "patch_dropout", "memory", "use_mrl", "mrl_dimensions")
_UNUSED: dict[Modality, tuple[str, ...]] = {
    "image": ("vocab_size", "max_len", "audio_max_seconds"),
    "text": (*_IMAGE_ONLY, *_PERCEIVER, "patch_size", "audio_max_seconds"),
    "audio": (*_IMAGE_ONLY, "vocab_size", "max_len"),
}
"""Fields of `EncoderConfig` that mean nothing for a modality."""
_SCRATCH_ONLY = (
    *("dim", "depth", "mlp_ratio", "activation", "pre_norm", "patch_bias", "drop_rate", "attn_drop_rate"),
    *("stem", "patch_dropout", "patch_size", "vocab_size"),
)
"""Fields that shape a backbone from scratch and mean nothing for a pretrained one, as does `num_heads`."""
_NOT_OF: dict[str, tuple[str, ...]] = {
    "convnet": ("mlp_ratio", "activation", "pre_norm", "patch_bias", "stem", "attn_drop_rate", "patch_dropout"),
}
"""Fields of which those of our backbones that are no transformers make nothing."""
_QWEN_ONLY = ("model", "load_in_4bit", "use_lora", "lora", "freeze", "use_trm_recursion")
_TRM_ONLY = ("dim", "num_heads", "mlp_ratio", "vocab_size")
_TOKENS_ONLY = "does nothing with a `decoder`, which reads the tower's tokens and no embedding"


_OF_FILES = (
    *("val_fraction", "max_bad_fraction", "prompt_templates", "class_names", "image_root", "skip_unsupported_rows"),
    *("max_image_pixels", "max_file_mib", "allow_outside"),
    *(f"{name}_column" for name in ("image", "caption", "audio", "label", "question", "answer", "kind")),
)
"""Fields of `DatasetConfig` for data in files; the embedded scenes are drawn and have no labels."""
_PLURALS = {"does": "do", "is": "are"}
_PLURAL = re.compile(r"^(does|is)\b")
_SPLITS = ("train", "val", "test")


def _below(section: str, *names: str) -> tuple[str, ...]:
    return tuple(f"{section}.{name}" for name in names)


def _has_decoder(config: ExperimentConfig) -> bool:
    return config.decoder is not None


def _pools_nothing(config: ExperimentConfig) -> bool:
    """True where no embedding is made, and `prefix_layer` does not depend on how a frozen tower once made it."""
    decoder = config.decoder
    return decoder is not None and not (decoder.prefix_layer == "auto" and bool(config.vision_encoder.freeze))


def _reads_shapes(config: ExperimentConfig) -> dict[str, bool]:
    """True for each split that is one of the embedded data."""
    data = config.dataset
    others = {"val": data.val_path or data.train_path, "test": data.test_path or data.train_path}
    paths = {"train": data.train_path, **others}
    return {split: path == EMBEDDED for split, path in paths.items()}


def _shapes_rule(key: str, *splits: str) -> Rule:
    def unread(config: ExperimentConfig) -> bool:
        return not any(_reads_shapes(config)[split] for split in splits)

    return Rule((f"dataset.shapes.{key}",), unread, "is for the embedded shapes, which are not read there")


def _is_one_process(config: ExperimentConfig) -> bool:
    """True where the config says so, whatever the machine."""
    trainer = config.trainer
    devices = 1 if trainer.devices == "auto" and trainer.accelerator == "cpu" else trainer.devices
    return devices == 1 and trainer.num_nodes == 1


def _trains_pretrained(config: ExperimentConfig) -> bool:
    return any(
        (not is_frozen(tower) or tower.unfreeze_last > 0)
        and (tower.checkpoint is not None or not is_from_scratch(modality, tower))
        for modality, _, tower in towers(config)
    )


def _tower_rules(modality: Modality, part: str) -> tuple[Rule, ...]:
    """Rules that refuse."""

    def exists(config: ExperimentConfig) -> bool:
        return any(name == part for _, name, _ in towers(config))

    def is_pretrained(config: ExperimentConfig) -> bool:
        return exists(config) and getattr(config, part).backbone not in OURS

    def has_no_heads(config: ExperimentConfig) -> bool:  # attention pooling has heads, whatever the backbone
        return is_pretrained(config) and not getattr(config, part).use_attention_pooling

    def is_drawn(config: ExperimentConfig) -> bool:
        return exists(config) and not is_pretrained(config)

    def is_by(name: str, also: Callable[[EncoderConfig], bool] = lambda _: True) -> Callable[[ExperimentConfig], bool]:
        return lambda config: any(
            own == part and tower.backbone == name and also(tower) for _, own, tower in towers(config)
        )

    scratch_only = [name for name in _SCRATCH_ONLY if name not in _UNUSED[modality]]
    why = f"is for a backbone from scratch, not for {{{part}.backbone}}"
    unread = f"is not for {{{part}.backbone}}, which is no transformer"
    return (
        Rule(_below(part, *_UNUSED[modality]), exists, f"means nothing for {modality}"),
        Rule(_below(part, *scratch_only), is_pretrained, why),
        Rule(_below(part, "num_heads"), has_no_heads, why),
        Rule((f"{part}.lora",), is_drawn, f"adapts a pretrained backbone, and {{{part}.backbone}} is none"),
        *(Rule(_below(part, *names), is_by(name), unread) for name, names in _NOT_OF.items()),
        *(
            Rule(_below(part, "num_heads"), is_by(name, lambda tower: not tower.use_attention_pooling), unread)
            for name in _NOT_OF
        ),
    )


def _switched_off(part: str) -> tuple[Rule, ...]:
    """Rules that warn of a tower's keys whose switch is off, or overruled by another one."""

    def where(holds: Callable[[EncoderConfig], bool]) -> Callable[[ExperimentConfig], bool]:
        return lambda config: any(name == part and holds(tower) for _, name, tower in towers(config))

    training = ("drop_rate", "attn_drop_rate", "patch_dropout", "activation_checkpointing")
    state = ("memory.mem_reinit_steps", "memory.memory_momentum")
    latents = f"does nothing under `{part}.use_perceiver`, "
    return (
        Rule(_below(part, *_LATENTS), where(lambda t: not t.use_perceiver), f"is for `{part}.use_perceiver`"),
        Rule(_below(part, "projection"), where(lambda t: t.use_perceiver), f"{latents}which takes its place"),
        Rule(
            _below(part, "use_attention_pooling", "pooling"),
            where(lambda t: t.use_perceiver),
            f"{latents}whose latents are averaged",
        ),
        Rule(
            _below(part, "pooling"),
            where(lambda t: t.use_attention_pooling),
            f"does nothing under `{part}.use_attention_pooling`",
        ),
        Rule(_below(part, "mrl_dimensions"), where(lambda t: not t.use_mrl), f"is for `{part}.use_mrl`"),
        Rule(_below(part, "memory.*"), where(lambda t: not t.memory.enabled), f"is for `{part}.memory.enabled`"),
        Rule(
            _below(part, "memory.memory_position"),
            where(lambda t: True),
            "orders the sequence and moves no embedding, for attention knows no order here",
            is_control=True,
        ),
        Rule(
            _below(part, "memory.mem_alpha"),
            where(lambda t: t.memory.memory_update == "static"),
            f"is not for static tokens (`{part}.memory.memory_update`)",
        ),
        Rule(
            _below(part, "memory.memory_update", *state),
            where(lambda t: t.memory.mem_alpha == 0),
            f"does nothing where `{part}.memory.mem_alpha` is 0, which makes the tokens static",
        ),
        Rule(
            _below(part, *state),
            where(lambda t: t.memory.memory_update == "static"),
            f"is not for static tokens (`{part}.memory.memory_update`), which have no state",
        ),
        Rule(_below(part, *training), where(lambda t: not has_trained_blocks(t)), "does nothing in a frozen tower"),
        Rule(_below(part, *state), where(is_frozen), "does nothing in a frozen tower"),
        Rule(
            _below(part, "unfreeze_last"), where(lambda t: not is_frozen(t)), f"is for a frozen tower (`{part}.freeze`)"
        ),
    )


REFUSED = (
    *_tower_rules("image", "vision_encoder"),
    *_tower_rules("text", "text_encoder"),
    *_tower_rules("audio", "audio_encoder"),
    Rule(
        ("fusion",),
        lambda c: c.decoder is None and FUSED_PAIR not in (c.losses.pairs or ()),
        f"fuses nothing without {FUSED_PAIR} in `losses.pairs` or a `decoder`",
        f"add {FUSED_PAIR} to `losses.pairs`, or leave it at its defaults",
    ),
    Rule(("dataset.audio_augmentation",), lambda c: c.audio_encoder is None, "does nothing without an `audio_encoder`"),
    Rule(
        ("fusion.layers",),
        lambda c: c.fusion.strategy != "cross_attention",
        "is for cross_attention, not for {fusion.strategy}",
    ),
    Rule(
        _below("fusion", "num_queries", "num_heads"),
        lambda c: c.fusion.strategy == "concat",
        "is for cross_attention and gated, not for concat",
    ),
    Rule(_below("decoder", *_QWEN_ONLY), lambda c: c.decoder.type == "trm", "is for `decoder.type` qwen, not for trm"),
    Rule(_below("decoder", *_TRM_ONLY), lambda c: c.decoder.type == "qwen", "is for `decoder.type` trm, not for qwen"),
    Rule(
        ("decoder.lora.*",),
        lambda c: c.decoder.type == "qwen" and not c.decoder.use_lora,
        "does nothing without `decoder.use_lora`",
        "set that to true or leave it out",
    ),
    Rule(
        ("losses.*", "optimization.lr_logits", "dataset.caption_dropout"),
        _has_decoder,
        "does nothing with a `decoder`, which learns answers alone",
    ),
    Rule(
        _below("dataset", "questions_per_image", "question_column", "answer_column", "kind_column"),
        lambda c: c.decoder is None,
        "does nothing without a `decoder`, which alone is asked",
        "add one or leave it out",
    ),
)
"""Rules for keys that are refused where they have no effect."""
WARNED = (
    Rule(("text_encoder.*",), _has_decoder, "does nothing with a `decoder`, which reads the text itself"),
    Rule(
        _below("dataset", "prompt_templates", "class_names"),
        _has_decoder,
        "does nothing with a `decoder`, which classifies nothing",
    ),
    Rule(("vision_encoder.embed_dim", "vision_encoder.use_mrl", "audio_encoder.embed_dim"), _has_decoder, _TOKENS_ONLY),
    Rule(_below("vision_encoder", "use_attention_pooling", "pooling"), _pools_nothing, _TOKENS_ONLY),
    Rule(("audio_encoder.use_attention_pooling", "audio_encoder.pooling"), _has_decoder, _TOKENS_ONLY),
    Rule(
        ("vision_encoder.projection",),
        lambda c: c.decoder is not None and c.decoder.prefix == "memory",
        "does nothing here, the decoder reads memory tokens (`decoder.prefix`)",
    ),
    Rule(
        _below("vision_encoder", *_PERCEIVER),
        lambda c: c.decoder is not None and c.decoder.prefix != "perceiver",
        "does nothing here, the decoder reads no latents; set `decoder.prefix` to perceiver for them",
    ),
    Rule(
        ("decoder.recursion.*",),
        lambda c: c.decoder.type == "qwen" and not c.decoder.use_trm_recursion,
        "does nothing for qwen without `decoder.use_trm_recursion`",
    ),
    Rule(
        ("decoder.generation.seed",),
        lambda c: c.decoder.generation.temperature == 0,
        "does nothing at `decoder.generation.temperature` 0, which draws nothing",
    ),
    Rule(
        _below("decoder.recursion", "num_cycles", "num_steps", "num_rounds"),
        lambda c: not c.decoder.recursion.recursive,
        "does nothing without `decoder.recursion.recursive`, a plain stack",
    ),
    *_switched_off("vision_encoder"),
    *_switched_off("text_encoder"),
    *_switched_off("audio_encoder"),
    Rule(
        ("vision_encoder.patch_dropout",),
        lambda c: c.dataset.image_size == c.vision_encoder.patch_size,
        "does nothing where `dataset.image_size` is a single patch",
    ),
    Rule(("dataset.val_fraction",), lambda c: c.dataset.val_path is not None, "does nothing beside `dataset.val_path`"),
    Rule(
        _below("dataset", *_OF_FILES),
        lambda c: all(_reads_shapes(c).values()),
        "is for data in files, not for the embedded shapes",
    ),
    Rule(("dataset.label_column",), _has_decoder, "does nothing with a `decoder`, which classifies nothing"),
    Rule(("dataset.audio_column",), lambda c: c.audio_encoder is None, "does nothing without an `audio_encoder`"),
    *(_shapes_rule(f"num_{split}", split) for split in _SPLITS),
    _shapes_rule("seed", *_SPLITS),
    Rule(
        _below("dataset", "prefetch_factor", "persistent_workers"),
        lambda c: c.dataset.num_workers == 0,
        "does nothing where `dataset.num_workers` is 0",
    ),
    Rule(("dataset.pin_memory",), lambda c: c.trainer.accelerator == "cpu", "is for a GPU (`trainer.accelerator`)"),
    Rule(
        _below("losses", "mrl_weight", "sample_single_mrl_dim"),
        lambda c: not c.vision_encoder.use_mrl,
        "does nothing without `vision_encoder.use_mrl`",
    ),
    Rule(
        ("losses.sample_single_mrl_dim",),
        lambda c: len(c.vision_encoder.mrl_dimensions) < 2,
        "does nothing where `vision_encoder.mrl_dimensions` has a single one",
    ),
    Rule(("losses.siglip_bias",), lambda c: c.losses.type == "clip", "is for `losses.type` siglip, not for clip"),
    Rule(
        ("losses.max_logit_scale",),
        lambda c: not c.losses.learn_temperature,
        "does nothing without `losses.learn_temperature`",
    ),
    Rule(("losses.gather_distributed",), _is_one_process, "does nothing in one process"),
    Rule(
        ("losses.pairs",),
        lambda c: c.audio_encoder is None,
        "does nothing without an `audio_encoder`: there is one pair",
    ),
    Rule(
        ("optimization.lr_pretrained",),
        lambda c: not _trains_pretrained(c),
        "does nothing without a pretrained tower that is trained",
    ),
    Rule(
        ("optimization.lr_memory",),
        lambda c: not c.vision_encoder.memory.enabled or is_frozen(c.vision_encoder),
        "does nothing without memory tokens that are trained (`vision_encoder.memory.enabled`)",
    ),
    Rule(
        ("optimization.lr_logits",),
        lambda c: c.losses.type == "clip" and not c.losses.learn_temperature,
        "does nothing without `losses.learn_temperature`, for clip has no other logits to learn",
    ),
    Rule(("optimization.eps",), lambda c: c.optimization.optimizer == "sgd", "is for adam and adamw, not for sgd"),
    Rule(
        ("optimization.warmup_epochs",),
        lambda c: c.optimization.warmup_steps is not None,
        "does nothing beside `optimization.warmup_steps`",
    ),
    Rule(
        ("optimization.cooldown_epochs",),
        lambda c: c.optimization.scheduler != "const_cooldown",
        "is for `optimization.scheduler` const_cooldown",
    ),
    Rule(
        ("optimization.min_lr",),
        lambda c: c.optimization.scheduler == "constant",
        "does nothing under `optimization.scheduler` constant",
    ),
    Rule(("trainer.strategy",), lambda c: c.trainer.strategy == "ddp", "is ddp by auto as well"),
    Rule(("trainer.logging.entity",), lambda c: not c.trainer.logging.wandb, "is for `trainer.logging.wandb`"),
    Rule(
        ("trainer.checkpoint.filename",),
        lambda c: c.trainer.checkpoint.save_top_k == 0,
        "does nothing where `trainer.checkpoint.save_top_k` is 0",
    ),
)
"""Rules for keys that are only warned of."""


def check_relevance(config: ExperimentConfig) -> Iterator[Fault]:
    """A fault for each key that is refused because it has no effect."""
    changed = _changed(config)
    for rule in REFUSED:
        for key in _idle_keys(rule, config, changed):
            yield Fault(key, f"{rule.why.format(**vars(config))}; {rule.fix}")


def notices(config: ExperimentConfig) -> list[str]:
    """One line for each rule that warns of keys which differ from their defaults; each key is named once.

    Settings that a tower has from its run were not written, and are spared.
    """
    adopted = [part for _, part, tower in towers(config) if tower.checkpoint is not None]
    theirs = [key for key in _changed(config) if key.split(".")[0] in adopted and key.split(".")[1] not in OWN]
    left = [key for key in _changed(config) if key not in theirs]
    lines = []
    for rule in WARNED:
        if keys := _idle_keys(rule, config, left):
            left = [key for key in left if not any(key == idle or key.startswith(f"{idle}.") for idle in keys)]
            why = _PLURAL.sub(lambda verb: _PLURALS[verb[0]], rule.why) if len(keys) > 1 else rule.why
            lines.append(Fault(listed(keys, "and"), why).line())
    return lines


def idle_keys(config: ExperimentConfig) -> dict[str, str]:
    """The keys that have no effect in an experiment, whatever their values, each with the reason."""
    every = [key for key, _ in leaves(to_tree(config))]
    idle: dict[str, str] = {}
    for rule in (*REFUSED, *WARNED):
        named = tuple(key.removesuffix(".*") for key in rule.keys)
        below = tuple(f"{name}." for name in named)
        keys = [key for key in every if key in named or key.startswith(below)]
        if keys and not rule.is_control and rule.idle(config):
            idle = dict.fromkeys(keys, rule.why.format(**vars(config))) | idle
    return idle


def default_tree(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The engine's defaults, with those of each optional part that `tree` has."""
    optional = {"audio_encoder": EncoderConfig(backbone="spectrogram"), "decoder": DecoderConfig()}
    defaults: dict[str, Any] = to_tree(ExperimentConfig())
    return defaults | {key: to_tree(part) for key, part in optional.items() if isinstance(tree.get(key), Mapping)}


def _changed(config: ExperimentConfig) -> list[str]:
    """The keys that do not have their defaults."""
    tree = to_tree(config)
    defaults = default_tree(tree)
    return [key for key, value in leaves(tree) if value != lookup(defaults, key)]


def _idle_keys(rule: Rule, config: ExperimentConfig, changed: list[str]) -> list[str]:
    """Those keys of a rule that have no effect, though they do not have their defaults."""
    keys: list[str] = []
    for key in rule.keys:
        below = [other for other in changed if other.startswith(f"{key.removesuffix('.*')}.")]
        if key.endswith(".*"):
            keys += below
        elif below or key in changed:
            keys.append(key)
    return keys if keys and rule.idle(config) else []
