"""The guide's short paths: `training.optimizer=adamw`, `training.optimizer_kwargs.*` and the same for `scheduler`.

They are rewritten to the full paths before anything is composed, in YAML files and in overrides alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from impresa.config.faults import Fault, raise_faults, show
from impresa.config.tree import leaves, merge, nested

_PARTS = ("optimizer", "scheduler")


def expand(tree: Mapping[str, Any]) -> dict[str, Any]:
    """`tree` with full paths in place of short ones.

    Raises:
        ConfigError: when a value is given by both paths and differs.
    """
    training = tree.get("training")
    if not isinstance(training, Mapping):
        return dict(tree)
    full = dict(training)
    faults: list[Fault] = []
    for part in _PARTS:
        short = f"{part}_kwargs"
        value = full.get(part, {})
        if part in full and not isinstance(value, Mapping):
            value = {part: value}
        if short in full:
            added = {short: full.pop(short)}
            faults += _conflicts(f"training.{part}", value, added)
            value = merge(value, added)
        if value:
            full[part] = value
    raise_faults(faults)
    return {**tree, "training": full}


def expand_overrides(overrides: Sequence[tuple[str, Any]], faults: list[Fault]) -> list[tuple[str, Any]]:
    """Overrides (dotted key, value) with full keys in place of short ones; the last of equal keys wins.

    A value that is given by both paths and differs is appended to `faults`.
    """
    expanded: list[tuple[str, Any]] = []
    spelled: dict[str, tuple[str, Any]] = {}
    for key, value in overrides:
        rewritten = list(leaves(expand(nested(key, value)))) if key.split(".")[0] == "training" else [(key, value)]
        for full, leaf in rewritten:
            earlier = spelled.setdefault(full, (key, leaf))
            if earlier[0] != key and earlier[1] != leaf:
                faults.append(_conflict(full, earlier[1], leaf))
            spelled[full] = (key, leaf)
        expanded += rewritten
    return expanded


def _conflicts(key: str, full: Any, short: Mapping[str, Any]) -> list[Fault]:
    known = dict(leaves(full)) if isinstance(full, Mapping) else {}
    return [
        _conflict(f"{key}.{path}", known[path], value)
        for path, value in leaves(short)
        if path in known and known[path] != value
    ]


def _conflict(key: str, first: Any, second: Any) -> Fault:
    return Fault(key, f"is given twice, by its short and its full path, as {show(first)} and {show(second)}; keep one")
