"""Configs as plain trees of dicts, lists and scalars: walking, merging, naming leaves by dotted paths."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any


def to_tree(config: Any) -> Any:
    """A config dataclass (or a tree) as plain dicts with text keys, and lists; scalars stay as they are."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {field.name: to_tree(getattr(config, field.name)) for field in dataclasses.fields(config)}
    if isinstance(config, Mapping):
        return {str(key): to_tree(value) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return [to_tree(value) for value in config]
    return config


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the values of `over`; mappings are merged, everything else is replaced."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def leaves(tree: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf with its dotted path; an empty mapping is a leaf."""
    for key, value in tree.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{path}.")
        else:
            yield path, value


def nested(path: str, value: Any) -> dict[str, Any]:
    """The tree that has `value` at the dotted `path` and nothing else."""
    for part in reversed(path.split(".")):
        value = {part: value}
    return value


def lookup(tree: Any, path: str, default: Any = None) -> Any:
    """The value at a dotted path, or `default` when there is none."""
    for part in path.split("."):
        if not isinstance(tree, Mapping) or part not in tree:
            return default
        tree = tree[part]
    return tree


def without(tree: Mapping[Any, Any], paths: set[str], prefix: str = "") -> dict[Any, Any]:
    """`tree` less the given dotted paths."""
    kept = {key: value for key, value in tree.items() if f"{prefix}{key}" not in paths}
    return {
        key: without(value, paths, f"{prefix}{key}.") if isinstance(value, Mapping) else value
        for key, value in kept.items()
    }
