"""Reasons of bad samples, made fit to be counted."""

from __future__ import annotations

import re


def without_details(reason: str) -> str:
    """A reason without the values, files and fixes that it names."""
    return re.split(r" \(|: |; | but ", reason, maxsplit=1)[0]
