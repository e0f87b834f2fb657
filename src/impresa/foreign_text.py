"""Text of others (captions, labels, names of files, answers), made fit for a terminal or a page in Markdown."""

from __future__ import annotations

import json
import re
import unicodedata
from typing import Any

_KEPT = frozenset("\u200c\u200d")
"""Joiners that belong to the spelling of some languages and to emoji."""
_HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Categories of Unicode that change how other text is shown, or that no terminal can show: controls (C0 and C1),
formats (overrides of the direction of writing are among them), halves of characters, separators of lines."""
_MARKDOWN = re.compile(r"([\\`*\[\]<>|~&$]|(?<![^\W_])_|_(?![^\W_])|^[#+=-]|:(?=//)|(?<=\bwww)\.)", re.IGNORECASE)
"""Characters that begin or end markup, those that do at the start of a line, and those that make an address a link."""
_NUMBER = re.compile(r"^(\d{1,9})([.)])")
"""The start of a numbered list."""


def printable(text: str, *, lines: bool = False) -> str:
    r"""The text with a visible escape, such as \u001b, in place of each character that could steer a terminal.

    Args:
        text: of any origin.
        lines: keep line breaks and tabs, for texts that have lines of their own. Otherwise they are escaped too, so
            that no text can look like several.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(_shown(character, lines) for character in text)


def json_text(values: Any, indent: int | None = 2) -> str:
    """JSON for a terminal: what `printable` escapes is escaped here too, which leaves the same values in it."""
    return printable(json.dumps(values, indent=indent, ensure_ascii=False), lines=True)


def markdown(text: object) -> str:
    """Words for a line of Markdown, in which nothing is markup and nothing ends the line."""
    return _NUMBER.sub(r"\1\\\2", _MARKDOWN.sub(r"\\\1", printable(" ".join(str(text).split()))))


def _shown(character: str, lines: bool) -> str:
    if unicodedata.category(character) not in _HIDDEN or character in _KEPT or (lines and character in "\n\t"):
        return character
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))
