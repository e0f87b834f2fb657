"""Which of the two dialects a tree is written in, and how keys of the one are called in the other."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from impresa.config.experiment import ExperimentConfig
from impresa.config.faults import Fault
from impresa.config.memory_vlm import MemoryVLMConfig, to_experiment
from impresa.config.tree import leaves, to_tree

ENGINE = "experiment"
GUIDE = "memory_vlm"
SCHEMAS: dict[str, type] = {ENGINE: ExperimentConfig, GUIDE: MemoryVLMConfig}
TOP_LEVEL = {name: frozenset(f.name for f in dataclasses.fields(schema)) for name, schema in SCHEMAS.items()}
_TITLES = {
    ENGINE: "experiment dialect (dataset, vision_encoder, ...)",
    GUIDE: "Memory-VLM dialect (model, training, project)",
}


def dialect_of(tree: Mapping[str, Any]) -> str:
    """`memory_vlm` when most of the tree lies under `model`, `training` or `project`, else `experiment`."""
    size = {name: sum(1 for _ in leaves(part)) for name, part in _split(tree).items()}
    return GUIDE if size[GUIDE] > size[ENGINE] else ENGINE


def other_dialect(dialect: str) -> str:
    return ENGINE if dialect == GUIDE else GUIDE


def foreign_keys(tree: Mapping[str, Any], dialect: str) -> Iterator[Fault]:
    """A fault for each key of the other dialect: the two cannot be mixed."""
    other = other_dialect(dialect)
    names = guide_names() if dialect == GUIDE else {guide: engine for engine, guide in guide_names().items()}
    for path, _ in leaves(_split(tree)[other]):
        mend = f"write {names[path]}" if path in names else "leave it out, or write all of it in one dialect"
        yield Fault(path, f"is a key of the {_TITLES[other]}, and this config is in the {_TITLES[dialect]}; {mend}")


@cache
def guide_names() -> dict[str, str]:
    """Engine key -> the key of the Memory-VLM dialect that sets it, read off the translation itself.

    A config in which each value is the name of its own key is translated; where a name comes out, it is set by it.
    """
    named = to_experiment(_named(MemoryVLMConfig()))
    known = {path for path, _ in leaves(to_tree(MemoryVLMConfig()))}
    return {path: value for path, value in leaves(to_tree(named)) if isinstance(value, str) and value in known}


def both_names(key: str) -> str:
    """An engine key, with the guide's name behind it if there is one: for faults found after the translation."""
    name = guide_names().get(key)
    return f"{key} ({name})" if name else key


def _named(config: Any, prefix: str = "") -> Any:
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value, path = getattr(config, field.name), f"{prefix}{field.name}"
        changes[field.name] = _named(value, f"{path}.") if dataclasses.is_dataclass(value) else path
    return dataclasses.replace(config, **changes)


def _split(tree: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: {key: value for key, value in tree.items() if key in keys} for name, keys in TOP_LEVEL.items()}
