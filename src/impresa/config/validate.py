"""From a plain tree, in either dialect, to a checked `ExperimentConfig`: all faults in one go, one line each."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping
from functools import cache
from typing import Any, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

from impresa.config.checks import check_experiment, check_guide
from impresa.config.describe import choices, describe, hints, known_keys, locate, section
from impresa.config.dialects import GUIDE, TOP_LEVEL, dialect_of, foreign_keys, guide_names, other_dialect
from impresa.config.experiment import DecoderConfig, EncoderConfig, ExperimentConfig
from impresa.config.faults import Fault, listed, nearest, raise_faults, show
from impresa.config.memory_vlm import MemoryVLMConfig, to_experiment
from impresa.config.tree import lookup, merge, to_tree, without
from impresa.errors import ConfigError

Schema = TypeVar("Schema")


def validate(config: ExperimentConfig | MemoryVLMConfig) -> ExperimentConfig:
    """The same config with every rule checked; a `MemoryVLMConfig` is translated.

    Raises:
        ConfigError: with one line per fault.
    """
    return experiment_from_tree(to_tree(config))


def experiment_from_tree(tree: Mapping[str, Any], known_faults: Iterable[Fault] = ()) -> ExperimentConfig:
    """The experiment that a plain tree describes in either dialect; keys that it lacks have their defaults.

    Args:
        tree: nested mappings, lists and scalars.
        known_faults: what was found wrong while the tree was composed, told together with the rest.

    Raises:
        ConfigError: with one line per fault, in the names of the tree's own dialect.
    """
    if not isinstance(tree, Mapping):
        raise ConfigError(f"config: got {show(tree)}; it must be a mapping of keys")
    tree = to_tree(tree)
    dialect = dialect_of(tree)
    faults = [*known_faults, *foreign_keys(tree, dialect)]
    own = {key: value for key, value in tree.items() if key not in TOP_LEVEL[other_dialect(dialect)]}
    config = _guide_experiment(own, faults) if dialect == GUIDE else _engine_experiment(own, faults)
    raise_faults(faults)
    return config


def _engine_experiment(tree: Mapping[str, Any], faults: list[Fault]) -> ExperimentConfig:
    """The experiment of a tree in the engine's dialect; faults are appended to `faults`."""
    defaults = to_tree(ExperimentConfig())
    optional_parts = {"audio_encoder": EncoderConfig(backbone="spectrogram"), "decoder": DecoderConfig()}
    for key, part in optional_parts.items():
        if isinstance(tree.get(key), Mapping):
            defaults[key] = to_tree(part)
    if isinstance(tree.get("decoder"), Mapping) and "type" not in tree["decoder"]:
        faults.append(Fault("decoder.type", "this experiment has no decoder; set it to qwen or trm to add one"))
    config, wrong = _parse(ExperimentConfig, tree, defaults)
    faults += wrong
    faults += _about_sound_keys(check_experiment(config), faults)
    return config


def _guide_experiment(tree: Mapping[str, Any], faults: list[Fault]) -> ExperimentConfig:
    """The experiment of a tree in the Memory-VLM dialect; faults are appended to `faults` under the guide's names."""
    defaults = to_tree(MemoryVLMConfig())
    # The data's image size follows the model's unless it is set.
    defaults["training"]["data"]["image_size"] = lookup(tree, "model.image_size", defaults["model"]["image_size"])
    guide, wrong = _parse(MemoryVLMConfig, tree, defaults)
    faults += wrong
    faults += _about_sound_keys(check_guide(guide), faults)
    # The data's image size follows the model's, so that a fault of the size is one of the model's.
    config, names = to_experiment(guide), guide_names() | {"dataset.image_size": "model.image_size"}
    faults += _about_sound_keys((fault.renamed(names) for fault in check_experiment(config)), faults)
    return config


def _about_sound_keys(crossing: Iterable[Fault], faults: list[Fault]) -> list[Fault]:
    """Rules across fields say nothing where a field is wrong by itself: its value is not what the user meant."""
    wrong = {key for fault in faults for key in fault.about()}
    return [
        fault for fault in crossing if wrong.isdisjoint(name for key in fault.about() for name in _with_parents(key))
    ]


def _with_parents(key: str) -> list[str]:
    """`a.b.c`, `a.b` and `a`."""
    parts = key.split(".")
    return [".".join(parts[:length]) for length in range(len(parts), 0, -1)]


def _parse(schema: type[Schema], tree: Mapping[str, Any], defaults: Mapping[str, Any]) -> tuple[Schema, list[Fault]]:
    """The tree as a config object, and the faults of single fields; a wrong field has its default in the object."""
    full = merge(defaults, tree)
    adapter = _adapter(cast(Hashable, schema))
    try:
        return adapter.validate_python(full), []
    except ValidationError as error:
        faults = dict(_field_faults(schema, error, full))
    sound = merge(defaults, without(full, set(faults)))
    return adapter.validate_python(sound), list(faults.values())


@cache
def _adapter(schema: Hashable) -> TypeAdapter[Any]:
    return TypeAdapter(cast(Any, schema))


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
    kind = " (text)" if isinstance(value, str) and not choices(annotation) else ""
    near = nearest(value, choices(annotation)) if isinstance(value, str) else None
    hint = f" (did you mean {near}?)" if near else ""
    quotes = ", in quotes" if describe(annotation).startswith("text") and isinstance(value, int | float) else ""
    return f"got {show(value)}{kind}; it must be {describe(annotation)}{quotes}{hint}"


def _unknown(schema: type, location: tuple[int | str, ...], annotation: Any) -> str:
    *parents, key = (str(part) for part in location)
    siblings = list(hints(section(annotation) or schema))
    meant = nearest(key, siblings)
    if meant:
        return f"unknown key; did you mean {'.'.join((*parents, meant))}?"
    elsewhere = _names_by_last_part(schema)
    meant = nearest(key.rpartition(".")[2], elsewhere)
    if meant:
        return f"unknown key; did you mean {elsewhere[meant]}?"
    return f"unknown key; known here are {listed(siblings, 'and')}"


def _names_by_last_part(schema: type) -> dict[str, str]:
    """Last part of a key -> the whole key; a key of the guide also answers to what the engine calls it."""
    names = {path.rpartition(".")[2]: path for path in known_keys(schema)}
    if schema is MemoryVLMConfig:
        names = {engine.rpartition(".")[2]: guide for engine, guide in guide_names().items()} | names
    return names
