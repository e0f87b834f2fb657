"""One fault of a configuration, the line that tells it, and how values and near misses are shown in such lines."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from impresa.errors import ConfigError

_QUOTED_KEY = re.compile(r"`([A-Za-z0-9_.]+)`")
_MAX_SHOWN = 60


@dataclass(frozen=True)
class Fault:
    """What is wrong with one key, and what would be right.

    Keys are those of the engine's dialect; other keys that `text` speaks of stand in backticks, so that a line can be
    told in the names of the dialect that the user wrote.
    """

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
    """Raise one `ConfigError` that tells all faults, each once; do nothing when there are none."""
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


def listed(words: Iterable[Any], last: str = "or") -> str:
    """`a, b or c`."""
    *head, tail = [str(word) for word in words] or ["nothing"]
    return f"{', '.join(head)} {last} {tail}" if head else tail
