"""Standard output and standard error that take any text, whatever the terminal's encoding."""

from __future__ import annotations

import codecs
import json
import os
import sys

_PLAIN = {"→": "->", "…": "...", "“": '"', "”": '"'}
"""Signs of our own lines, and of rich's, in ASCII."""
_ESCAPING, _KEEPING = "impresa", "impresa-surrogateescape"


def accept_any_text() -> None:
    """Let both streams write what their encoding lacks in ASCII: our own signs by others, the rest as JSON's escapes,
    so that JSON stays JSON. Where file names pass through as bytes (LANG=C) they still do. A closed stream takes
    everything and shows nothing."""
    codecs.register_error(_ESCAPING, _in_ascii)
    codecs.register_error(_KEEPING, _in_ascii_or_as_it_was)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - for as long as the process
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=_KEEPING if stream.errors in ("surrogateescape", _KEEPING) else _ESCAPING)


def _in_ascii(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    sign = error.object[error.start]
    return _PLAIN.get(sign) or json.dumps(sign)[1:-1], error.start + 1


def _in_ascii_or_as_it_was(error: UnicodeError) -> tuple[str | bytes, int]:
    if isinstance(error, UnicodeEncodeError) and "\udc80" <= (sign := error.object[error.start]) <= "\udcff":
        return bytes([ord(sign) - 0xDC00]), error.start + 1
    return _in_ascii(error)
