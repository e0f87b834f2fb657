"""Configs in words, for error lines and the reference page: faults, values, near misses and annotations."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import StringConstraints

from impresa.config.tree import is_union
from impresa.errors import ConfigError

_QUOTED_KEY = re.compile(r"`([A-Za-z0-9_.]+)`")
_MAX_SHOWN = 60
_BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}


@dataclass(frozen=True)
class Fault:
    """A fault of one key, and the fix; other keys in `text` are in backticks, so that they can be renamed as well."""

    key: str
    text: str

    def about(self) -> set[str]:
        """All keys that the fault is about."""
        return {self.key, *_QUOTED_KEY.findall(self.text)}

    def renamed(self, names: Mapping[str, str]) -> Fault:
        """The same fault with keys called by other names."""
        text = _QUOTED_KEY.sub(lambda match: f"`{names.get(match[1], match[1])}`", self.text)
        return Fault(names.get(self.key, self.key), text)

    def line(self) -> str:
        """`key: what is wrong; what would be right`."""
        text = _QUOTED_KEY.sub(lambda match: match[1], self.text)
        return f"{self.key}: {text}"


def raise_faults(faults: Iterable[Fault]) -> None:
    """Raise one `ConfigError` with a line for each fault; do nothing when there are none."""
    lines = dict.fromkeys(fault.line() for fault in faults)
    if lines:
        raise ConfigError(*lines)


def show(value: Any) -> str:
    """A value as YAML would write it, on one line and not too long."""
    text = _as_yaml(value)
    return text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 3] + "..."


def _as_yaml(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_as_yaml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_as_yaml, value)) + "]"
    return repr(value)


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word most like `word`, or None when none is near; case and the kind of dash do not count."""
    plain = {name.lower().replace("-", "_"): name for name in known}
    matches = difflib.get_close_matches(word.lower().replace("-", "_"), plain, n=1, cutoff=0.6)
    return plain[matches[0]] if matches else None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`did you mean ...? ` with the nearest known word, or nothing."""
    near = nearest(word, known)
    return f"did you mean {near}? " if near else ""


def listed(words: Iterable[Any], last: str = "or") -> str:
    """`a, b or c`."""
    *head, tail = [str(word) for word in words] or ["nothing"]
    return f"{', '.join(head)} {last} {tail}" if head else tail


def choices(annotation: Any) -> list[str]:
    """The words that an annotation allows."""
    if get_origin(annotation) is Literal:
        return [str(word) for word in get_args(annotation)]
    return [word for part in get_args(annotation) for word in choices(part)] if is_union(annotation) else []


def describe(annotation: Any) -> str:
    """The end of the sentence "it must be ...", for the values that an annotation allows."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if is_union(annotation):
        words_first = sorted(arguments, key=lambda part: get_origin(part) is not Literal)
        return " or ".join(map(describe, words_first))
    if origin is Literal:
        return listed(arguments)
    if origin is tuple and arguments[-1] is Ellipsis:
        return f"a list, each item {describe(arguments[0])}"
    if origin is tuple:
        return f"a list of {len(arguments)}, each {describe(arguments[0])}"
    if origin is Annotated:
        kind = describe(arguments[0]) if is_union(arguments[0]) else _KINDS[arguments[0]]
        return " ".join((kind, " and ".join(_bounds(arguments[1:])))).rstrip()
    return _KINDS.get(annotation, "a mapping of keys")


def _bounds(metadata: tuple[Any, ...]) -> Iterator[str]:
    for rule in metadata:
        if isinstance(rule, StringConstraints) and rule.min_length:
            yield "that is not empty"
        yield from (f"{words} {getattr(rule, name)}" for name, words in _BOUNDS.items() if hasattr(rule, name))
