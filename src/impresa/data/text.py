"""Text as data files hold it: captions and labels in the cells of a table, and text that is not Unicode."""

from __future__ import annotations

from typing import Any


def is_unicode(text: str) -> bool:
    """False if bytes could not be read as UTF-8, or JSON escaped half a character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def printable(name: str) -> str:
    """A file name with the bytes replaced that are not UTF-8."""
    return name.encode("utf-8", errors="replace").decode()


def read_captions(value: Any, *, may_lack: bool = False) -> tuple[str, ...]:
    """The captions of a cell: a string, or a list of strings. Empty ones in a list are left out.

    Raises:
        ValueError: the cell holds something other than text, or nothing unless it `may_lack`; the message is the reason
            alone.
    """
    texts = as_list(value)
    if not all(text is None or isinstance(text, str) for text in texts):
        raise ValueError(f"the caption is no text but {value!r:.60}")
    if not all(is_unicode(text) for text in texts if text):
        raise ValueError("the caption is not UTF-8 text")
    captions = tuple(text.strip() for text in texts if text and text.strip())
    if not captions and not may_lack:
        raise ValueError("the caption is empty")
    return captions


def read_label(value: Any, what: str = "label") -> str | None:
    """The class name of a cell, or the type of a question; numbers become their digits, an empty cell None.

    Raises:
        ValueError: the text is not UTF-8; the message is the reason alone.
    """
    label = "" if value is None else str(value)
    if not is_unicode(label):
        raise ValueError(f"the {what} is not UTF-8 text")
    return label or None


def as_list(value: Any) -> list[Any]:
    """The values of a cell that may hold one value or a list."""
    return list(value) if isinstance(value, list | tuple) else [value]
