"""What a cell of a table means, whatever file it stands in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from impresa.data.text import is_unicode

NO_MODALITY = "has only one of image, caption and sound"
"""What is wrong with a sample that nothing can be learned from."""
NOTHING_TO_ASK_ABOUT = "has neither image nor sound to ask about"
"""What is wrong with a row that has nothing but text."""


@dataclass(frozen=True)
class Wanted:
    """What is read beside images and captions."""

    sound: bool
    dialogues: bool

    def lack(self, *, image: bool, audio: bool, captions: bool) -> str | None:
        """What is wrong with a sample that has no more than this; None if nothing can be."""
        if self.dialogues:
            return None if image or audio else NOTHING_TO_ASK_ABOUT
        return NO_MODALITY if image + audio + captions < 2 else None


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


def is_web_address(path: str) -> bool:
    """Whether a path is a URL: data are read from disk only."""
    return "://" in path


def read_label(value: Any, what: str = "label") -> str | None:
    """The class name of a cell, or the type of a question; numbers become their digits, an empty cell is none.

    Raises:
        ValueError: its text is no UTF-8; the message is the reason alone.
    """
    label = "" if value is None else str(value)
    if not is_unicode(label):
        raise ValueError(f"the {what} is not UTF-8 text")
    return label or None
