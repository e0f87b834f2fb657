"""Single cells of a table as text, whatever file the table stands in."""

from __future__ import annotations

from typing import Any

from impresa.data.text import is_unicode


def read_captions(value: Any) -> tuple[str, ...]:
    """The captions of a cell: a string, or a list of strings. Empty ones in a list are left out.

    Raises:
        ValueError: the cell is empty or holds something else than text; the message is the reason alone.
    """
    captions = read_optional_captions(value)
    if not captions:
        raise ValueError("the caption is empty")
    return captions


def read_optional_captions(value: Any) -> tuple[str, ...]:
    """The captions of a cell that may be empty.

    Raises:
        ValueError: the cell holds something else than text; the message is the reason alone.
    """
    texts = as_list(value)
    if not all(text is None or isinstance(text, str) for text in texts):
        raise ValueError(f"the caption is no text but {value!r:.60}")
    if not all(is_unicode(text) for text in texts if text):
        raise ValueError("the caption is not UTF-8 text")
    return tuple(text.strip() for text in texts if text and text.strip())


def read_label(value: Any, what: str = "label") -> str | None:
    """The class name of a cell, or the type of a question; numbers become their digits, an empty cell is None.

    Raises:
        ValueError: the text is not UTF-8; the message is the reason alone.
    """
    label = "" if value is None else str(value)
    if not is_unicode(label):
        raise ValueError(f"the {what} is not UTF-8 text")
    return label or None


def as_list(value: Any) -> list[Any]:
    """The values of a cell that may hold one or a list of them."""
    return list(value) if isinstance(value, list | tuple) else [value]
