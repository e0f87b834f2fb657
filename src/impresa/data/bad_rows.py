"""Reasons of bad samples, made fit to be counted."""

from __future__ import annotations

import re

_VALUE = re.compile(r"""(?<![\w=-])\d[\d.]*|(?<!\w)(?<!column )(?:'[^']*(?:'|$)|"[^"]*(?:"|$))""")
"""A number, or a quoted text, of which the end may be cut. Names of columns are kept."""


def without_details(reason: str) -> str:
    """A reason without the values, files and fixes that it names."""
    return re.split(r" \(|: |; | but ", _VALUE.sub("...", reason), maxsplit=1)[0]
