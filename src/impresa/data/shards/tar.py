"""The files in a tar archive, by one pass over its headers. Contents are skipped, and nothing is unpacked.

The formats of POSIX (ustar, pax), of GNU and of old tar are read, as Python's `tarfile` reads them; that one takes ten
times as long for a member, and believes what a damaged header says about sizes.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple

BLOCK = 512
_MOST_EXTRA = 1 << 20
"""Bytes of a long name, or of pax records: nobody needs more, and a header may claim anything."""
_REGULAR = b"0\x007"
_LONG_NAME, _PAX = b"Lx"
_EXTRA = b"LKxg"
"""Types of headers that say more about the next member, or about all."""
_WITHOUT_CONTENT = {
    ord("1"): "links",
    ord("2"): "links",
    ord("3"): "devices",
    ord("4"): "devices",
    ord("5"): "folders",
    ord("6"): "named pipes",
}
"""Types that are left out, and have no content whatever their size says."""
_SPARSE = ord("S")
_RECORD = re.compile(rb"(\d{1,7}) ([^=]{1,200})=")
_ZEROS = bytes(BLOCK)

ReadAt = Callable[[int, int], bytes]
"""Up to so many bytes from an offset on; fewer at the end."""


class Member(NamedTuple):
    """A regular file in an archive."""

    name: str
    """With its folders; bytes that are not UTF-8 are surrogates."""
    offset: int
    size: int


class TarError(ValueError):
    """An archive ends early or has no readable header at some place; the message is the reason alone.

    `name` is that of the file which is cut, if its header is whole.
    """

    def __init__(self, reason: str, name: str | None = None) -> None:
        super().__init__(reason)
        self.name = name


def members(read_at: ReadAt, num_bytes: int, left_out: Counter[str]) -> Iterator[Member]:
    """The regular files of an archive whose content is whole, in order.

    Args:
        read_at: reads the archive.
        num_bytes: size of the archive.
        left_out: numbers of members that are no regular files, by what they are, are added here.

    Raises:
        TarError: after the last whole file, if the archive ends early or is damaged.
    """
    offset, given = 0, dict[bytes, bytes]()
    while len(header := read_at(offset, BLOCK)) == BLOCK and header != _ZEROS:
        _check(header, offset)
        kind, size = header[156], _size(header, given, offset)
        content, offset = offset + BLOCK, offset + BLOCK
        if kind in _WITHOUT_CONTENT:
            left_out[_WITHOUT_CONTENT[kind]] += 1
            given = {}
            continue
        offset += _blocks(size)
        if kind == _SPARSE:
            raise TarError(f"a sparse file at byte {content} cannot be read; write it without `--sparse`")
        if content + size > num_bytes:
            reason = f"ends early, after {num_bytes} of {content + size} bytes or more"
            raise TarError(reason, None if kind in _EXTRA else _name(header, given))
        if kind in _EXTRA:
            given |= _extra(kind, read_at(content, size) if size <= _MOST_EXTRA else None, content)
            continue
        name, given = _name(header, given), {}
        is_folder = header[156] == 0 and name.endswith("/")  # of tar before POSIX
        if kind in _REGULAR and not is_folder:
            yield Member(name, content, size)
        else:
            left_out["folders" if is_folder else "members of unknown type"] += 1
    if len(header) < BLOCK:
        raise TarError(
            "is empty" if not num_bytes else f"ends early, after {num_bytes} bytes without a mark of its end"
        )


def _check(header: bytes, offset: int) -> None:
    stored, blank = header[148:156], 8 * ord(" ")
    total = sum(header) - sum(stored) + blank
    try:
        expected = int(stored.replace(b"\x00", b" ").split()[0], 8)
    except (ValueError, IndexError):
        expected = -1
    if expected == total:
        return
    signed = total - 256 * sum(byte > 127 for byte in header[:148] + header[156:])  # as some old programs added up
    if expected != signed:
        what = "is no tar file" if offset == 0 else f"is damaged at byte {offset}, and what follows is lost"
        raise TarError(what)


def _size(header: bytes, given: dict[bytes, bytes], offset: int) -> int:
    field = header[124:136]
    try:
        if b"size" in given:
            size = int(given[b"size"])
        elif field[0] in (0x80, 0xFF):
            size = int.from_bytes(field[1:], "big", signed=field[0] == 0xFF)
        else:
            size = int(field.rstrip(b"\x00 ").strip() or b"0", 8)
    except ValueError:
        size = -1
    if size < 0:
        raise TarError(f"is damaged at byte {offset} (a size), and what follows is lost")
    return size


def _extra(kind: int, content: bytes | None, offset: int) -> dict[bytes, bytes]:
    """Attributes of the next member that a header before it holds: `path`, `size`. One for all members has none."""
    if content is None:
        raise TarError(f"has a name or attributes of more than {_MOST_EXTRA >> 20} MiB at byte {offset}")
    if kind == _LONG_NAME:
        return {b"path": content.partition(b"\x00")[0]}
    if kind != _PAX:
        return {}
    found, at = dict[bytes, bytes](), 0
    while record := _RECORD.match(content, at):
        length = int(record[1])
        found[record[2]] = content[record.end() : at + length - 1]
        at += length
        if length <= record.end() - record.start() or at > len(content):
            break
    else:
        if not content[at:].strip(b"\x00"):
            if any(name.startswith(b"GNU.sparse.") for name in found):
                raise TarError(f"a sparse file at byte {offset} cannot be read; write it without `--sparse`")
            return {name: found[name] for name in (b"path", b"size") if name in found}
    raise TarError(f"is damaged at byte {offset} (attributes), and what follows is lost")


def _name(header: bytes, given: dict[bytes, bytes]) -> str:
    name = given.get(b"path")
    if name is None:
        name = header[:100].partition(b"\x00")[0]
        if header[257:263] == b"ustar\x00" and (prefix := header[345:500].partition(b"\x00")[0]):
            name = prefix + b"/" + name
    return name.decode("utf-8", "surrogateescape")


def _blocks(size: int) -> int:
    return -(-size // BLOCK) * BLOCK
