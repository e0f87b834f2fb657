"""Text as data files hold it: captions and labels in the cells of a table, and text that is not Unicode."""

from __future__ import annotations

import json
import re
import unicodedata
import warnings
from ast import literal_eval
from contextlib import suppress
from typing import Any

_OPENS = re.compile(r"""\s*(?:[\[({]|array\(|b["'])""")
_LIKE_A_LIST = re.compile(r"""(?:array\()?\[[\[({\s]*[uUbBrR]?["']""")
_LIKE_AN_OBJECT = re.compile(r"""\s*\{\s*(?:"[^"]*"|'[^']*')\s*:""")
_ARRAY = re.compile(r"array\((\[.*\])[^\]]*\)", re.DOTALL)
_ITEM = re.compile(r"""[\s,]*([uUbB]?'(?:[^'\\]|\\.)*'|[uUbB]?"(?:[^"\\]|\\.)*"|None\b|nan\b)""", re.DOTALL)
_CLOSES = re.compile(r"[\s,]*[\])}]")
_MOST_PRINTED = 1 << 20
"""Characters of a printed value that are given to Python's parser, which takes much memory for them."""
_WHOLE_FLOAT = re.compile(r"[+-]?\d+\.0+", re.ASCII)
_MISSING = ("nan", "<na>")
"""Texts that pandas writes for a cell without a value."""
_INVISIBLE = {"Cc", "Cf", "Cn", "Zs", "Zl", "Zp", "Mn", "Me"}
"""Unicode's categories of control, format and missing characters, of separators, and of marks on other characters."""
_FILLERS = "\u115f\u1160\u2800\u3164\uffa0"
"""Letters and a symbol that show nothing."""
_UNREADABLE = (ValueError, SyntaxError, TypeError, MemoryError, RecursionError)
"""Errors of parsers on text that is malformed or nested without end."""


def is_unicode(text: str) -> bool:
    """False if bytes could not be read as UTF-8, or JSON escaped half a character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def as_unicode(text: str) -> str:
    """The text with an escape for each half of a character, as names of files and JSON may have them."""
    return text.encode("utf-8", "backslashreplace").decode()


def is_blank(text: str) -> bool:
    """True for text in which nothing can be seen: of spaces, control and zero-width characters."""
    if "!" <= text[:1] <= "~":  # the common case
        return False
    return not any(unicodedata.category(char) not in _INVISIBLE and char not in _FILLERS for char in text)


def is_missing(value: Any) -> bool:
    """True for the cell of a table that holds nothing: null, NaN (also in words), no bytes, or nothing to be seen."""
    if isinstance(value, str):
        return is_blank(value) or (len(value) < 20 and value.strip().lower() in _MISSING)
    return value is None or value == b"" or bool(value != value)  # noqa: PLR0124 - NaN alone differs from itself


def as_read(text: str) -> str:
    """A text as our tokenizers read it, which tell neither letters' case nor white space apart."""
    return " ".join(text.lower().split())


def read_captions(value: Any, *, may_lack: bool = False, what: str = "caption") -> tuple[str, ...]:
    """The captions of a cell: a string, or a list of strings. Empty ones in a list are left out. `what` names them.

    Raises:
        ValueError: the cell holds something other than text, or nothing unless it `may_lack`; the message is the reason
            alone.
    """
    texts = [text for item in as_list(plain(value)) for text in as_list(item)]
    if not all(text is None or (isinstance(text, str) and not _LIKE_AN_OBJECT.match(text)) for text in texts):
        raise ValueError(f"the {what} is no text but {value!r:.60}")
    for text in texts:
        _check_unicode(text or "", what)
    captions = tuple(text.strip() for text in texts if not is_missing(text))
    if not captions and not may_lack:
        raise ValueError(f"the {what} is empty")
    return captions


def read_label(value: Any, what: str = "label") -> str | None:
    """The class name of a cell, or the type of a question, as text.

    Numbers become their digits, a whole float those of an integer; several values are separated by commas. A cell
    without a value (empty, null, NaN) is None.

    Raises:
        ValueError: the text is not UTF-8; the message is the reason alone.
    """
    texts = ["" if item is None else str(item).strip() for item in as_list(plain(value))]
    label = ", ".join(_digits(text) for text in texts if not is_missing(text))
    _check_unicode(label, what)
    return label or None


def as_list(value: Any) -> list[Any]:
    """The values of a cell that may hold one value or a list."""
    return list(value) if isinstance(value, list | tuple) else [value]


def plain(value: Any) -> Any:
    """A cell's value without the traces of the program that wrote it.

    Bytes become text, in which those that are not UTF-8 are surrogates. A text that is a list as JSON, Python or numpy
    print it becomes that list. NaN becomes None.

    Raises:
        ValueError: a text begins as a list and cannot be read as one; the message is the reason alone.
    """
    if isinstance(value, bytes):
        value = value.decode("utf-8", errors="surrogateescape")
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, str):
        return _unprinted(value) if _OPENS.match(value) and is_unicode(value) else value
    return None if is_missing(value) else value


def _unprinted(text: str) -> Any:
    """The list, or the bytes, that a text prints; the text itself if it prints neither."""
    body = text.strip()
    if array := _ARRAY.fullmatch(body):
        body = array[1]
    try:
        if isinstance(found := json.loads(body), list):
            return found
    except RecursionError as error:
        raise ValueError(f"{text!r:.60} is nested too deeply") from error
    except ValueError:
        pass
    with suppress(*_UNREADABLE), warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        if items := _printed_strings(body):
            return [None if item == "nan" else plain(literal_eval(item)) for item in items]
        value = literal_eval(body) if body[0] in "[b" and len(body) <= _MOST_PRINTED else None
        if isinstance(value, list | bytes):
            return plain(value)
    if _LIKE_A_LIST.match(body):
        raise ValueError(f"{text!r:.60} begins as a list and is none, neither in JSON nor in Python")
    return text


def _printed_strings(body: str) -> list[str]:
    """The literals of a list, tuple or set of strings; empty if it is none.

    They are told apart here, because Python reads 'a' 'b', as numpy prints two strings, as one.
    """
    items, position = [], 1
    while found := _ITEM.match(body, position):
        items.append(found[1])
        position = found.end()
    is_whole = _CLOSES.fullmatch(body, position) and (body[0] == "[" or "," in body[position:] or len(items) > 1)
    return items if is_whole and body[0] in "[({" else []


def _digits(text: str) -> str:
    return text.partition(".")[0] if _WHOLE_FLOAT.fullmatch(text) else text


def _check_unicode(text: str, what: str) -> None:
    if is_unicode(text):
        return
    fault = f"the {what} is not UTF-8 text"
    with suppress(UnicodeEncodeError):  # raised by half a character, which is no byte
        other = text.encode("utf-8", errors="surrogateescape").decode("latin-1")
        fault = f"{fault}; as Latin-1 it reads {other!r:.40}: save the file as UTF-8"
    raise ValueError(fault)
