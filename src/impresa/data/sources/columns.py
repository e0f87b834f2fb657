"""What a cell of a table means, whatever file it stands in."""

from __future__ import annotations

from typing import Any

NO_MODALITY = "has only one of image, caption and sound"
"""What is wrong with a sample that nothing can be learned from."""


def read_captions(value: Any) -> tuple[str, ...]:
    """The captions of a cell: a string, or a list of strings. Empty ones in a list are left out.

    Raises:
        ValueError: there is none, or something else is there; the message is the reason alone.
    """
    texts = value if isinstance(value, list | tuple) else [value]
    if not all(text is None or isinstance(text, str) for text in texts):
        raise ValueError(f"the caption is no text but {value!r:.60}")
    if not all(is_unicode(text) for text in texts if text):
        raise ValueError("the caption is not UTF-8 text")
    captions = tuple(text.strip() for text in texts if text and text.strip())
    if not captions:
        raise ValueError("the caption is empty")
    return captions


def read_optional_captions(value: Any) -> tuple[str, ...]:
    """The captions of a cell that may be empty.

    Raises:
        ValueError: something else than text is there; the message is the reason alone.
    """
    texts = value if isinstance(value, list | tuple) else [value]
    is_empty = all(text is None or (isinstance(text, str) and not text.strip()) for text in texts)
    return () if is_empty else read_captions(value)


def is_unicode(text: str) -> bool:
    """False where bytes could not be read as UTF-8, or JSON escaped half a character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def printable(name: str) -> str:
    """A file name that can be written as UTF-8, whatever its bytes are."""
    return name.encode("utf-8", errors="replace").decode()


def is_web_address(path: str) -> bool:
    """Whether a path is a URL: data are read from disk only."""
    return "://" in path


def read_label(value: Any) -> str | None:
    """The class name of a cell; numbers become their digits, and an empty cell is no class."""
    return None if value is None or value == "" else str(value)
