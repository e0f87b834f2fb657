"""Keys that have an effect only under a condition: they are named where they have none.

Most of them are refused there. Those that one sets for the other arm of an ablation, or inherits from a config that is
made for both arms, are only warned of.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from impresa.config.decoder import DecoderConfig
from impresa.config.describe import Fault, listed
from impresa.config.encoder import EncoderConfig
from impresa.config.experiment import ExperimentConfig, towers
from impresa.config.relevance_tables import REFUSED, WARNED
from impresa.config.relevance_towers import Rule
from impresa.config.tree import leaves, lookup, to_tree

OWN = ("checkpoint", "freeze", "unfreeze_last", "activation_checkpointing", "prompts")
"""Settings of how a tower of another run is used, not of what it is: these are no settings of that run."""
_PLURALS = {"does": "do", "is": "are"}
_PLURAL = re.compile(r"^(does|is)\b")


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
