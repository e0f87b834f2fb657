"""Configs as trees, of values (dicts, lists, scalars) and of classes with annotated fields; paths are dotted."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, Union, get_args, get_origin, get_type_hints


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


@cache
def hints(schema: type) -> dict[str, Any]:
    """Annotation of each field of a config class, bounds included."""
    annotations = get_type_hints(schema, include_extras=True)
    return {field.name: annotations[field.name] for field in dataclasses.fields(schema)}


def section(annotation: Any) -> Any:
    """The config class that an annotation holds (`X` or `X | None`), or None for a scalar or a list."""
    options = get_args(annotation) if is_union(annotation) else (annotation,)
    return next((option for option in options if dataclasses.is_dataclass(option)), None)


def is_union(annotation: Any) -> bool:
    return get_origin(annotation) in (Union, types.UnionType)


def holds(annotation: Any, kind: type) -> bool:
    """True if `kind` is among the types of an annotation, those of a list's items included."""
    return kind in (annotation, get_origin(annotation)) or any(holds(part, kind) for part in get_args(annotation))


def locate(schema: type, location: Sequence[int | str]) -> tuple[str, Any]:
    """The dotted path and the annotation of the field where a validation error lies.

    `location` may lead on into a list or name a branch of a union; the field is what a user can fix.
    """
    keys: list[str] = []
    annotation: Any = schema
    for part in location:
        owner = section(annotation)
        if owner is None or part not in hints(owner):
            break
        keys.append(str(part))
        annotation = hints(owner)[str(part)]
    return ".".join(keys), annotation


def known_keys(schema: type, prefix: str = "") -> Iterator[str]:
    """Dotted paths of all leaves of a config class, optional parts included."""
    for name, annotation in hints(schema).items():
        owner = section(annotation)
        if owner is None:
            yield f"{prefix}{name}"
        else:
            yield from known_keys(owner, f"{prefix}{name}.")
