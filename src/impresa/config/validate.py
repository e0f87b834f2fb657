"""From a plain tree, in either dialect, to a checked `ExperimentConfig`: all faults in one go, one line each."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import cache
from itertools import accumulate, chain
from types import NoneType
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from impresa.config.decoder import GenerationConfig
from impresa.config.describe import Fault, choices, describe, listed, nearest, raise_faults, show
from impresa.config.experiment import ExperimentConfig
from impresa.config.memory_vlm import ENGINE, ENGINE_KEYS, GUIDE, GUIDE_KEYS, TOP_LEVEL, MemoryVLMConfig, to_experiment
from impresa.config.relevance import check_relevance, default_tree
from impresa.config.rules import check_experiment, check_generation, check_guide, check_towers, idle_generation
from impresa.config.tree import hints, holds, known_keys, leaves, locate, lookup, merge, section, to_tree, without
from impresa.errors import ConfigError

T = TypeVar("T")
_SWITCHES = {"yes": True, "y": True, "on": True, "true": True, "no": False, "n": False, "off": False, "false": False}
_LEADING_ZEROS = re.compile(r"^([-+]?)0+(?=\d)")
_TITLES = {
    ENGINE: "experiment dialect (dataset, vision_encoder, ...)",
    GUIDE: "Memory-VLM dialect (model, training, project)",
}


def validate(config: ExperimentConfig | MemoryVLMConfig) -> ExperimentConfig:
    """The same config with every rule checked; a `MemoryVLMConfig` is translated.

    Raises:
        ConfigError: a value or a combination of values is impossible; one line per fault.
    """
    return experiment_from_tree(to_tree(config))


def experiment_from_tree(tree: Mapping[str, Any], known_faults: Iterable[Fault] = ()) -> ExperimentConfig:
    """The experiment that a plain tree describes in either dialect; keys that it lacks have their defaults.

    Args:
        tree: nested mappings, lists and scalars.
        known_faults: faults found while the tree was composed, reported together with the rest.

    Raises:
        ConfigError: the tree has faults; one line for each, in the names of the tree's own dialect.
    """
    if not isinstance(tree, Mapping):
        raise ConfigError(f"config: got {show(tree)}; it must be a mapping of keys")
    tree = to_tree(tree)
    dialect, other = (GUIDE, ENGINE) if is_guide(tree) else (ENGINE, GUIDE)
    faults = [*known_faults, *(_foreign_key(key, dialect, other) for key in _keys_of(tree, other))]
    own = {key: value for key, value in tree.items() if key not in TOP_LEVEL[other]}
    config = _guide_experiment(own, faults) if dialect == GUIDE else _engine_experiment(own, faults)
    raise_faults(faults)
    return config


def left_over(tree: Mapping[str, Any], parts: Collection[str]) -> set[str]:
    """The keys and sections of these towers that their backbones cannot use, in a tree of the engine's dialect."""
    config: ExperimentConfig = _parse(ExperimentConfig, tree, default_tree(tree), [])
    refused = [fault.key for fault in chain(check_relevance(config), check_towers(config))]
    sections = {f"{part}.memory.enabled": f"{part}.memory" for part in parts}
    return {sections.get(key, key) for key in refused if key.split(".")[0] in parts and "." in key}


def generation_settings(
    given: GenerationConfig | Mapping[str, Any] | None,
    defaults: GenerationConfig,
    name: Callable[[str], str] = "generation.{}".format,
) -> GenerationConfig:
    """The settings of a call, checked: `defaults`, with what is given in their place.

    Args:
        given: all settings, some by name, or none.
        defaults: the rest. What has no effect beside the given ones is passed over.
        name: what an error calls a setting.

    Raises:
        ConfigError: a line for each setting that does not exist, is out of bounds, or is given and has no effect.
    """
    if given is not None and not isinstance(given, GenerationConfig | Mapping):
        fix = "it must be a GenerationConfig of impresa.config, or a dict of some of its fields"
        raise ConfigError(f"generation: got {type(given).__name__}; {fix}")
    faults: list[Fault] = []
    chosen = to_tree(given or {})
    tree = merge(to_tree(defaults), chosen)
    config: GenerationConfig = _parse(GenerationConfig, tree, to_tree(GenerationConfig()), faults)
    idle = (fault for fault in idle_generation(config) if fault.key in chosen)
    faults += _about_sound_keys(chain(check_generation(config), idle), faults)
    raise_faults(replace(fault, key=name(fault.key)) for fault in faults)
    return config


def section_from_tree(schema: type[T], tree: Mapping[str, Any]) -> T:
    """The config object that a plain tree describes, which is no part of an experiment; what it lacks has defaults.

    Raises:
        ConfigError: one line for each unknown key and wrong value.
    """
    faults: list[Fault] = []
    section: T = _parse(schema, to_tree(tree), to_tree(schema()), faults)
    raise_faults(faults)
    return section


def is_guide(tree: Mapping[str, Any]) -> bool:
    """True for a tree that is written in the Memory-VLM dialect, as most of its keys are."""
    return len(_keys_of(tree, GUIDE)) > len(_keys_of(tree, ENGINE))


def _keys_of(tree: Mapping[str, Any], dialect: str) -> list[str]:
    part = {key: value for key, value in tree.items() if key in TOP_LEVEL[dialect]}
    return [path for path, _ in leaves(part)]


def _foreign_key(key: str, dialect: str, other: str) -> Fault:
    names = GUIDE_KEYS if dialect == GUIDE else ENGINE_KEYS
    own = "leave it out" if dialect == ENGINE else "set it in what `impresa config show` prints of this config"
    fix = f"write {names[key]}" if key in names else own
    return Fault(key, f"is a key of the {_TITLES[other]}, and this config is in the {_TITLES[dialect]}; {fix}")


def _engine_experiment(tree: Mapping[str, Any], faults: list[Fault]) -> ExperimentConfig:
    """The experiment of a tree in the engine's dialect; faults are appended to `faults`."""
    if isinstance(tree.get("decoder"), Mapping) and "type" not in tree["decoder"]:
        faults.append(
            Fault("decoder.type", "this experiment has no decoder; set it to qwen, causal_lm or trm to add one")
        )
    config: ExperimentConfig = _parse(ExperimentConfig, tree, default_tree(tree), faults)
    faults += _about_sound_keys(chain(check_experiment(config), check_relevance(config)), faults)
    return config


def _guide_experiment(tree: Mapping[str, Any], faults: list[Fault]) -> ExperimentConfig:
    """The experiment of a tree in the Memory-VLM dialect; faults are appended to `faults` under the guide's names."""
    defaults = to_tree(MemoryVLMConfig())
    # The data's image size follows the model's unless it is set, and a fault of the size is one of the model's.
    defaults["training"]["data"]["image_size"] = lookup(tree, "model.image_size", defaults["model"]["image_size"])
    names = GUIDE_KEYS | {"dataset.image_size": "model.image_size"}
    guide: MemoryVLMConfig = _parse(MemoryVLMConfig, tree, defaults, faults)
    faults += _about_sound_keys(check_guide(guide), faults)
    config = to_experiment(guide)
    crossing = chain(check_experiment(config), check_relevance(config))
    faults += _about_sound_keys((fault.renamed(names) for fault in crossing), faults)
    return config


def _about_sound_keys(crossing: Iterable[Fault], faults: list[Fault]) -> list[Fault]:
    """The faults of rules across fields, but for fields that are wrong by themselves: their value is not meant."""
    wrong = {key for fault in faults for key in fault.about()}
    return [fault for fault in crossing if wrong.isdisjoint(chain.from_iterable(map(_parents, fault.about())))]


def _parents(key: str) -> Iterator[str]:
    """`a`, `a.b` and `a.b.c`."""
    return accumulate(key.split("."), lambda parent, part: f"{parent}.{part}")


def _parse(schema: type, tree: Mapping[str, Any], defaults: Mapping[str, Any], faults: list[Fault]) -> Any:
    """The tree as a config object; a wrong field has its default in it, and its fault is appended to `faults`."""
    full, adapter = merge(defaults, tree), _adapter(schema)
    wrong = dict(_nulls_in_words(schema, full))
    try:
        config = adapter.validate_python(full)
        if not wrong:
            return config
    except ValidationError as error:
        wrong |= dict(_field_faults(schema, error, full))
    faults += wrong.values()
    return adapter.validate_python(merge(defaults, without(full, set(wrong))))


@cache
def _adapter(schema: type) -> TypeAdapter[Any]:
    return TypeAdapter(schema)


def _nulls_in_words(schema: type, tree: Mapping[str, Any]) -> Iterator[tuple[str, Fault]]:
    """One fault for each text that was meant to be null, where it could be either."""
    for key, value in leaves(tree):
        path, annotation = locate(schema, key.split("."))
        if isinstance(value, str) and holds(annotation, str) and _plainly(value, annotation) == "null":
            yield path, Fault(path, f"got {show(value)} (text) where null is meant; write null")


def _field_faults(schema: type, error: ValidationError, tree: Mapping[str, Any]) -> Iterator[tuple[str, Fault]]:
    """One fault for each field that pydantic finds wrong, however many branches of a union it tried."""
    for item in error.errors(include_url=False, include_context=False):
        path, annotation = locate(schema, item["loc"])
        if item["type"] == "unexpected_keyword_argument":
            path = ".".join(str(part) for part in item["loc"])
            yield path, Fault(path, _unknown(schema, item["loc"], annotation))
        else:
            yield path, Fault(path, _wrong_value(lookup(tree, path), annotation))


def _wrong_value(value: Any, annotation: Any) -> str:
    words = choices(annotation)
    kind = " (text)" if isinstance(value, str) and not words else ""
    near = nearest(value, words) if isinstance(value, str) else None
    hint = f" (did you mean {near}?)" if near else ""
    if isinstance(value, str) and (plain := _plainly(value, annotation)):
        hint = f"; write {plain}"
    quotes = ", in quotes" if describe(annotation).startswith("text") and isinstance(value, int | float) else ""
    return f"got {show(value)}{kind}; it must be {describe(annotation)}{quotes}{hint}"


def _plainly(text: str, annotation: Any) -> str | None:
    """How to write the null, switch or number that a text stands for in Python, in YAML 1.1 or in quotes, where an
    annotation allows it; None if it stands for none.
    """
    word = text.strip().lower()
    if holds(annotation, NoneType) and word in ("none", "null", "~"):
        return "null"
    if holds(annotation, bool) and word in _SWITCHES:
        return show(_SWITCHES[word])
    decimal = _LEADING_ZEROS.sub(r"\1", word)
    readers: list[tuple[type, Callable[[], float]]] = [
        (int, lambda: int(decimal)),
        (int, lambda: int(word, base=0)),
        (float, lambda: float(decimal)),
    ]
    for kind, read in readers:
        with suppress(ValueError, OverflowError):
            if holds(annotation, kind) and math.isfinite(number := read()):
                return show(number)
    return None


def _unknown(schema: type, location: tuple[int | str, ...], annotation: Any) -> str:
    *parents, key = (str(part) for part in location)
    siblings = list(hints(section(annotation) or schema))
    # Anywhere else, by the last part of the key; a key of the guide also goes by the engine's name.
    elsewhere = {path.rpartition(".")[2]: path for path in known_keys(schema)}
    if schema is MemoryVLMConfig:
        elsewhere = {engine.rpartition(".")[2]: guide for engine, guide in GUIDE_KEYS.items()} | elsewhere
    last = key.rpartition(".")[2]
    if last not in elsewhere and (meant := nearest(key, siblings)):
        return f"unknown key; did you mean {'.'.join((*parents, meant))}?"
    if meant := nearest(last, elsewhere):
        return f"unknown key; did you mean {elsewhere[meant]}?"
    return f"unknown key; known here are {listed(siblings, 'and')}"
