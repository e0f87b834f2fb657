"""Keys that have an effect only under a condition: two tables say where they have none, and why.

Most of them are refused there. Those that one sets for the other arm of an ablation, or inherits from a config that is
made for both arms, are only warned of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from impresa.config.describe import Fault, listed
from impresa.config.experiment import (
    FROM_SCRATCH,
    FUSED_PAIR,
    DecoderConfig,
    EncoderConfig,
    ExperimentConfig,
    Modality,
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


_PERCEIVER = ("use_perceiver", "perceiver_num_latents", "perceiver_num_layers", "perceiver_num_heads")
_IMAGE_ONLY = ("pre_norm", "patch_bias", "memory", "use_mrl", "mrl_dimensions")
_UNUSED: dict[Modality, tuple[str, ...]] = {
    "image": ("vocab_size", "max_len", "audio_max_seconds"),
    "text": (*_IMAGE_ONLY, *_PERCEIVER, "patch_size", "audio_max_seconds"),
    "audio": (*_IMAGE_ONLY, "vocab_size", "max_len"),
}
"""Fields of `EncoderConfig` that mean nothing for a modality."""
_SCRATCH_ONLY = (
    *("dim", "depth", "mlp_ratio", "activation", "pre_norm", "patch_bias", "drop_rate", "attn_drop_rate"),
    *("patch_size", "vocab_size"),
)
"""Fields that shape a backbone from scratch and mean nothing for a pretrained one, as does `num_heads`."""
_QWEN_ONLY = ("model", "load_in_4bit", "use_lora", "lora", "freeze", "use_trm_recursion")
_TRM_ONLY = ("dim", "num_heads", "mlp_ratio", "vocab_size")
_TOKENS_ONLY = "does nothing with a `decoder`, which reads the tower's tokens and no embedding"


def _below(section: str, *names: str) -> tuple[str, ...]:
    return tuple(f"{section}.{name}" for name in names)


def _has_decoder(config: ExperimentConfig) -> bool:
    return config.decoder is not None


def _reads_no_files(config: ExperimentConfig) -> bool:
    dataset = config.dataset
    return {dataset.train_path, dataset.val_path, dataset.test_path} <= {EMBEDDED, None}


def _pools_nothing(config: ExperimentConfig) -> bool:
    """True where no embedding is made, and `prefix_layer` does not depend on how a frozen tower once made it."""
    decoder = config.decoder
    return decoder is not None and not (decoder.prefix_layer == "auto" and bool(config.vision_encoder.freeze))


def _tower_rules(modality: Modality, part: str) -> tuple[Rule, ...]:
    def exists(config: ExperimentConfig) -> bool:
        return any(name == part for _, name, _ in towers(config))

    def is_pretrained(config: ExperimentConfig) -> bool:
        return exists(config) and getattr(config, part).backbone not in FROM_SCRATCH.values()

    def has_no_heads(config: ExperimentConfig) -> bool:  # attention pooling has heads, whatever the backbone
        return is_pretrained(config) and not getattr(config, part).use_attention_pooling

    scratch_only = [name for name in _SCRATCH_ONLY if name not in _UNUSED[modality]]
    why = f"is for a backbone from scratch, not for {{{part}.backbone}}"
    return (
        Rule(_below(part, *_UNUSED[modality]), exists, f"means nothing for {modality}"),
        Rule(_below(part, *scratch_only), is_pretrained, why),
        Rule(_below(part, "num_heads"), has_no_heads, why),
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
    Rule(
        _below("dataset", "class_names", "max_file_mib", "allow_outside"),
        _reads_no_files,
        "does nothing for shapes, which are drawn and named by no file",
    ),
    Rule(("vision_encoder.embed_dim", "vision_encoder.use_mrl", "audio_encoder.embed_dim"), _has_decoder, _TOKENS_ONLY),
    Rule(_below("vision_encoder", "use_attention_pooling", "pooling"), _pools_nothing, _TOKENS_ONLY),
    Rule(
        ("vision_encoder.use_perceiver",),
        lambda c: c.decoder is not None and c.decoder.prefix != "perceiver",
        "does nothing here, the decoder reads no latents; set `decoder.prefix` to perceiver for them",
    ),
    Rule(
        ("decoder.recursion.*",),
        lambda c: c.decoder.type == "qwen" and not c.decoder.use_trm_recursion,
        "does nothing for qwen without `decoder.use_trm_recursion`",
    ),
    Rule(
        _below("decoder.recursion", "num_cycles", "num_steps", "num_rounds"),
        lambda c: not c.decoder.recursion.recursive,
        "does nothing without `decoder.recursion.recursive`, a plain stack",
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
    """One line for each rule that warns; settings that a tower has from its run were not written, and are spared."""
    adopted = [part for _, part, tower in towers(config) if tower.checkpoint is not None]
    changed = [key for key in _changed(config) if key.split(".")[0] not in adopted]
    lines = []
    for rule in WARNED:
        if keys := _idle_keys(rule, config, changed):
            why = rule.why.replace("does", "do", 1) if len(keys) > 1 else rule.why
            lines.append(Fault(listed(keys, "and"), why).line())
    return lines


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
