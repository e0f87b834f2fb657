"""Names of many files in one path: `shards/{0000..0099}.tar`, and addresses on the web."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

PIPE = "pipe:"
"""Beginning of what the webdataset package runs as a command; here it is refused."""
_INNERMOST = re.compile(r"\{([^{}]*)\}")
_NUMBERS = re.compile(r"(\d{1,12})\.\.(\d{1,12})(?:\.\.(\d{1,12}))?")
_BRACES = re.compile(r"\{(?:[^{}]*,[^{}]*|\d{1,12}\.\.\d{1,12}(?:\.\.\d{1,12})?)\}")
_MOST_NAMES = 1_000_000


def is_address(path: str) -> bool:
    """True for a URL of any kind, such as `s3://bucket/0000.tar`."""
    return "://" in path


def address_name(address: str) -> str:
    """The path of an address alone: what it is called, and what its suffix says of it."""
    return urlsplit(address).path


def shown_address(address: str) -> str:
    """An address for a message: without passwords, and without the query, where signatures are."""
    parts = urlsplit(address)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def has_braces(path: str) -> bool:
    """True for a path whose braces stand for several names."""
    return _BRACES.search(path) is not None


def braces_expanded(path: str) -> list[str]:
    """All different names that a path with braces stands for, in order.

    `{08..11}` counts, `{0..10..2}` in steps, `{a,b}` lists, and other braces stay.

    Raises:
        ValueError: there are more than a million; the message is the reason alone.
    """
    names, done = [path], list[str]()
    while names:
        name = names.pop()
        for found in _INNERMOST.finditer(name):
            if words := _words(found[1]):
                names += [name[: found.start()] + word + name[found.end() :] for word in reversed(words)]
                break
        else:
            done.append(name)
        if len(names) + len(done) > _MOST_NAMES:
            raise ValueError(f"its braces stand for more than {_MOST_NAMES} names")
    return list(dict.fromkeys(done))  # braces in braces name some twice


def _words(text: str) -> list[str]:
    """The words that the inside of a pair of braces stands for; none for braces that are part of a name."""
    if numbers := _NUMBERS.fullmatch(text):
        first, last = int(numbers[1]), int(numbers[2])
        if abs(last - first) >= _MOST_NAMES:
            raise ValueError(f"its braces stand for more than {_MOST_NAMES} names")
        is_padded = any(number.startswith("0") and number != "0" for number in numbers.group(1, 2))
        width = max(len(numbers[1]), len(numbers[2])) if is_padded else 0
        side = 1 if last >= first else -1
        step = side * max(int(numbers[3] or 1), 1)
        return [f"{number:0{width}d}" for number in range(first, last + side, step)]
    return text.split(",") if "," in text else []
