"""Filling in the templates of pages.

In HTML all but `Markup` is escaped. Markdown has no such thing: a template passes foreign words through the filter
`words`, code through `code`, and the settings on top of a page through `front_matter`.
"""

from __future__ import annotations

import re
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup, escape

from impresa.foreign_text import markdown, printable

_TEMPLATES = Environment(
    loader=PackageLoader("impresa.reports"),
    autoescape=select_autoescape(("html.j2",)),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)


def _code(text: object) -> str:
    """Inline code, fenced by more backticks than it holds in a row."""
    shown = printable(" ".join(str(text).split()))
    fence = "`" * (1 + max((len(found) for found in re.findall("`+", shown)), default=0))
    padding = " " if shown.startswith("`") or shown.endswith("`") else ""
    return f"{fence}{padding}{shown}{padding}{fence}"


def _front_matter(settings: dict[str, Any]) -> str:
    return f"---\n{yaml.safe_dump(settings, allow_unicode=True, sort_keys=False)}---"


def _breakable(text: object) -> Markup:
    """A name for a page, broken where one would: after a sign that parts its words."""
    return Markup(re.sub(r"([.,/=_])(?=\S)", r"\1<wbr>", str(escape(text))))


_TEMPLATES.filters |= {"words": markdown, "code": _code, "front_matter": _front_matter, "breakable": _breakable}


def render(template: str, **values: object) -> str:
    """A template of this package with its names filled in."""
    return _TEMPLATES.get_template(template).render(values)
