"""Keys that mean something only under a condition: where it does not hold, what is written there does nothing.

Most such keys are refused. Those that one sets for the other arm of an ablation, or inherits from a config that is made
for both arms, are only told: the second table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from impresa.config.experiment import DecoderConfig, EncoderConfig, ExperimentConfig
from impresa.config.faults import Fault, listed
from impresa.config.tree import leaves, lookup, to_tree


@dataclass(frozen=True)
class Rule:
    """Keys, or sections, that mean something only if."""

    keys: tuple[str, ...]
    counts_if: Callable[[ExperimentConfig], bool]
    why: str
    """Why they do nothing otherwise, and the mend."""


def _aligns(config: ExperimentConfig) -> bool:
    return config.decoder is None


def _asks(config: ExperimentConfig) -> bool:
    return config.decoder is not None


def _pools(config: ExperimentConfig) -> bool:
    """Whether the image tower makes an embedding, or it matters to `prefix_layer` how it once did."""
    decoder, tower = config.decoder, config.vision_encoder
    return decoder is None or (decoder.prefix_layer == "auto" and bool(tower.freeze))


def _has_adapters(config: ExperimentConfig) -> bool:
    return config.decoder is None or config.decoder.type != "qwen" or config.decoder.use_lora


def _has_recursion(config: ExperimentConfig) -> bool:
    return config.decoder is None or config.decoder.type != "qwen" or config.decoder.use_trm_recursion


def _recurses(config: ExperimentConfig) -> bool:
    return config.decoder is None or config.decoder.recursion.recursive


def _reads_latents(config: ExperimentConfig) -> bool:
    return config.decoder is None or config.decoder.prefix == "perceiver"


def _recursion(*names: str) -> tuple[str, ...]:
    return tuple(f"decoder.recursion.{name}" for name in names)


def _vision(*names: str) -> tuple[str, ...]:
    return tuple(f"vision_encoder.{name}" for name in names)


_ANSWERS_ONLY = "with a `decoder`, which learns answers alone; leave it out"
_TOKENS_ONLY = "with a `decoder`, which reads the tower's tokens and no embedding"

REFUSED: tuple[Rule, ...] = (
    Rule(("losses", "optimization.lr_logits", "dataset.caption_dropout"), _aligns, _ANSWERS_ONLY),
    Rule(
        tuple(f"dataset.{name}" for name in ("questions_per_image", "question_column", "answer_column", "kind_column")),
        _asks,
        "without a `decoder`, which alone is asked; add one or leave it out",
    ),
    Rule(("decoder.lora",), _has_adapters, "without `decoder.use_lora`; set that to true or leave it out"),
)
TOLD: tuple[Rule, ...] = (
    Rule(("text_encoder",), _aligns, "with a `decoder`, which reads the text itself"),
    Rule(("dataset.prompt_templates",), _aligns, "with a `decoder`, which classifies nothing"),
    Rule((*_vision("embed_dim", "use_mrl"), "audio_encoder.embed_dim"), _aligns, _TOKENS_ONLY),
    Rule(_vision("pooling", "use_attention_pooling"), _pools, _TOKENS_ONLY),
    Rule(
        _vision("use_perceiver"),
        _reads_latents,
        "here, the decoder reads no latents; set `decoder.prefix` to perceiver for them",
    ),
    Rule(("decoder.recursion",), _has_recursion, "for qwen without `decoder.use_trm_recursion`"),
    Rule(
        _recursion("num_cycles", "num_steps", "num_rounds"),
        _recurses,
        "without `decoder.recursion.recursive`, a plain stack",
    ),
)


def check_effects(config: ExperimentConfig) -> Iterator[Fault]:
    """A fault for each key that is refused because it does nothing."""
    for rule in REFUSED:
        for key in _written_in_vain(config, rule):
            yield Fault(key, f"does nothing {rule.why}")


def notices(config: ExperimentConfig) -> list[str]:
    """A line for each of the other rules under which something does nothing."""
    found = [(_written_in_vain(config, rule), rule) for rule in TOLD]
    return [
        Fault(listed(keys, "and"), f"{'do' if len(keys) > 1 else 'does'} nothing {rule.why}").line()
        for keys, rule in found
        if keys
    ]


def _written_in_vain(config: ExperimentConfig, rule: Rule) -> list[str]:
    """Those keys of a rule that do nothing here and have not their defaults. What a tower has from a run is no key."""
    if rule.counts_if(config):
        return []
    tree, default = to_tree(config), to_tree(_defaults(config))
    adopted = {part for part in ("vision_encoder", "audio_encoder") if lookup(tree, f"{part}.checkpoint")}
    changed = [key for key, value in leaves(tree) if value != lookup(default, key)]
    return [
        key
        for key in changed
        if key.split(".")[0] not in adopted and any(key == name or key.startswith(f"{name}.") for name in rule.keys)
    ]


def _defaults(config: ExperimentConfig) -> ExperimentConfig:
    audio = None if config.audio_encoder is None else EncoderConfig(backbone="spectrogram")
    return ExperimentConfig(decoder=None if config.decoder is None else DecoderConfig(), audio_encoder=audio)
