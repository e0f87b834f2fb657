"""HTML that is escaped unless it says that it is markup."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape


class Markup(str):
    """A string that is HTML already."""

    __slots__ = ()


def fill(template: str, **values: object) -> Markup:
    """`template` with each `{name}` replaced: markup as it is, anything else escaped."""
    return Markup(template.format_map({name: _safe(value) for name, value in values.items()}))


def join(parts: Iterable[Markup]) -> Markup:
    """Pieces of markup, one after the other."""
    return Markup("\n".join(parts))


def _safe(value: object) -> str:
    return value if isinstance(value, Markup) else escape(str(value))
