"""Text that may not be what it claims: bytes that are no UTF-8, halves of characters."""

from __future__ import annotations


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
