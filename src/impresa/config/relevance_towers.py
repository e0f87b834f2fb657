"""The rules of relevance for the keys of one tower."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from impresa.config.encoder import (
    OURS,
    EncoderConfig,
    Modality,
    has_trained_blocks,
    is_frozen,
)
from impresa.config.experiment import ExperimentConfig, towers


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


_LATENTS = ("perceiver_num_latents", "perceiver_num_layers", "perceiver_num_heads")
PERCEIVER = ("use_perceiver", *_LATENTS)
_IMAGE_ONLY = ("pre_norm", "patch_bias", "stem", "patch_dropout", "memory", "use_mrl", "mrl_dimensions")
_UNUSED: dict[Modality, tuple[str, ...]] = {
    "image": ("vocab_size", "max_len", "prompts", "audio_max_seconds"),
    "text": (*_IMAGE_ONLY, *PERCEIVER, "patch_size", "audio_max_seconds"),
    "audio": (*_IMAGE_ONLY, "vocab_size", "max_len", "prompts"),
}
"""Fields of `EncoderConfig` that mean nothing for a modality."""
_SCRATCH_ONLY = (
    *("dim", "depth", "mlp_ratio", "activation", "pre_norm", "patch_bias", "drop_rate", "attn_drop_rate"),
    *("stem", "patch_dropout", "patch_size", "vocab_size"),
)
"""Fields that shape a backbone from scratch and mean nothing for a pretrained one, as does `num_heads`."""
_NOT_OF: dict[str, tuple[str, ...]] = {
    "convnet": ("mlp_ratio", "activation", "pre_norm", "patch_bias", "stem", "attn_drop_rate", "patch_dropout"),
    "bag": ("depth", "mlp_ratio", "activation", "attn_drop_rate", "activation_checkpointing"),
}
"""Fields of which those of our backbones that are no transformers make nothing."""


def below(section: str, *names: str) -> tuple[str, ...]:
    return tuple(f"{section}.{name}" for name in names)


def tower_rules(modality: Modality, part: str) -> tuple[Rule, ...]:
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
        Rule(below(part, *_UNUSED[modality]), exists, f"means nothing for {modality}"),
        Rule(below(part, *scratch_only), is_pretrained, why),
        Rule(below(part, "num_heads"), has_no_heads, why),
        Rule((f"{part}.lora",), is_drawn, f"adapts a pretrained backbone, and {{{part}.backbone}} is none"),
        *(Rule(below(part, *names), is_by(name), unread) for name, names in _NOT_OF.items()),
        *(
            Rule(below(part, "num_heads"), is_by(name, lambda tower: not tower.use_attention_pooling), unread)
            for name in _NOT_OF
        ),
    )


def switched_off(part: str) -> tuple[Rule, ...]:
    """Rules that warn of a tower's keys whose switch is off, or overruled by another one."""

    def where(holds: Callable[[EncoderConfig], bool]) -> Callable[[ExperimentConfig], bool]:
        return lambda config: any(name == part and holds(tower) for _, name, tower in towers(config))

    training = ("drop_rate", "attn_drop_rate", "patch_dropout", "activation_checkpointing")
    state = ("memory.mem_reinit_steps", "memory.memory_momentum")
    latents = f"does nothing under `{part}.use_perceiver`, "
    return (
        Rule(below(part, *_LATENTS), where(lambda t: not t.use_perceiver), f"is for `{part}.use_perceiver`"),
        Rule(below(part, "projection"), where(lambda t: t.use_perceiver), f"{latents}which takes its place"),
        Rule(
            below(part, "use_attention_pooling", "pooling"),
            where(lambda t: t.use_perceiver),
            f"{latents}whose latents are averaged",
        ),
        Rule(
            below(part, "pooling"),
            where(lambda t: t.use_attention_pooling),
            f"does nothing under `{part}.use_attention_pooling`",
        ),
        Rule(below(part, "mrl_dimensions"), where(lambda t: not t.use_mrl), f"is for `{part}.use_mrl`"),
        Rule(below(part, "memory.*"), where(lambda t: not t.memory.enabled), f"is for `{part}.memory.enabled`"),
        Rule(
            below(part, "memory.memory_position"),
            where(lambda t: True),
            "orders the sequence and moves no embedding, for attention knows no order here",
            is_control=True,
        ),
        Rule(
            below(part, "memory.mem_alpha"),
            where(lambda t: t.memory.memory_update == "static"),
            f"is not for static tokens (`{part}.memory.memory_update`)",
        ),
        Rule(
            below(part, "memory.memory_update", *state),
            where(lambda t: t.memory.mem_alpha == 0),
            f"does nothing where `{part}.memory.mem_alpha` is 0, which makes the tokens static",
        ),
        Rule(
            below(part, *state),
            where(lambda t: t.memory.memory_update == "static"),
            f"is not for static tokens (`{part}.memory.memory_update`), which have no state",
        ),
        Rule(below(part, *training), where(lambda t: not has_trained_blocks(t)), "does nothing in a frozen tower"),
        Rule(below(part, *state), where(is_frozen), "does nothing in a frozen tower"),
        Rule(
            below(part, "unfreeze_last"), where(lambda t: not is_frozen(t)), f"is for a frozen tower (`{part}.freeze`)"
        ),
    )
