"""The index of a shard: which samples it holds, and where each of their files lies.

Files belong to one sample while they follow each other and have the same key, as in the webdataset package: the key is
the path up to the first dot of its last part, and the rest, in lower case, is the kind of the file.

An index is kept as a header in JSON and plain arrays. It may come from anybody, so nothing in it is believed: sizes are
checked before anything is made of them, and an index that does not fit its shard is made anew.
"""

from __future__ import annotations

import json
import re
import struct
from array import array
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from impresa.data.disk import read_regular
from impresa.data.shards.tar import BLOCK, Member, ReadAt, TarError, members
from impresa.files import write_atomic
from impresa.json_files import parse_json

_MAGIC = b"impresa index of a tar shard, 1\n"
_LEAST_LIMIT = 1 << 20
"""Bytes that an index may have in any case; otherwise no more than its shard."""
META = re.compile(r"__[^/]*__($|/)")
"""Names that the webdataset package leaves out."""
KEY = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)", re.DOTALL)
"""The name of a file, as its sample's name and the kind of the file."""


@dataclass(frozen=True, eq=False)
class ShardIndex:
    """N samples of a shard, with M files in all."""

    key_ends: NDArray[np.int64]
    """(N,) end of each sample's key in `keys`."""
    first: NDArray[np.int64]
    """(N + 1,) number of each sample's first file, and M."""
    repeats: NDArray[np.uint8]
    """(N,) 1 for a sample whose key an earlier one has."""
    kinds: NDArray[np.uint32]
    """(M,) kind of each file, as a number in `extensions`."""
    offsets: NDArray[np.int64]
    """(M,) first byte of each file's content."""
    lengths: NDArray[np.int64]
    """(M,) bytes of the content."""
    keys: NDArray[np.uint8]
    """The keys one after the other, in UTF-8 (with surrogates as they are)."""
    extensions: tuple[str, ...]
    left_out: Mapping[str, int]
    """Numbers of files that are part of no sample, by the reason."""
    num_bytes: int
    """Size of the shard."""
    fault: str = ""
    """Reason why the shard does not end as it should; what it names is lost."""

    ARRAYS: ClassVar[dict[str, str]] = {
        **dict.fromkeys(("key_ends", "first", "offsets", "lengths"), "<i8"),
        "repeats": "|u1",
        "kinds": "<u4",
        "keys": "|u1",
    }

    def __len__(self) -> int:
        return len(self.key_ends)

    def key(self, sample: int) -> str:
        start = int(self.key_ends[sample - 1]) if sample else 0
        return self.keys[start : int(self.key_ends[sample])].tobytes().decode("utf-8", "surrogateescape")

    def files(self, sample: int) -> list[tuple[int, int, int]]:
        """Kind, offset and length of each of a sample's files."""
        part = slice(int(self.first[sample]), int(self.first[sample + 1]))
        arrays = (self.kinds[part], self.offsets[part], self.lengths[part])
        return list(zip(*(values.tolist() for values in arrays), strict=True))


class _Builder:
    """Samples as their files come."""

    def __init__(self) -> None:
        self.keys, self.seen = bytearray(), set[str]()
        self.key_ends, self.first, self.repeats = array("q"), array("q"), bytearray()
        self.kinds, self.offsets, self.lengths = array("q"), array("q"), array("q")
        self.extensions: dict[str, int] = {}
        self.last: str | None = None

    def add(self, member: Member, key: str, extension: str) -> None:
        if key != self.last:
            self.repeats.append(key in self.seen)
            self.seen.add(key)
            self.last = key
            self.keys += key.encode("utf-8", "surrogateescape")
            self.key_ends.append(len(self.keys))
            self.first.append(len(self.kinds))
        self.kinds.append(self.extensions.setdefault(extension, len(self.extensions)))
        self.offsets.append(member.offset)
        self.lengths.append(member.size)

    def cut(self, key: str | None) -> None:
        """Leave the last sample out if it may lack files: it has the key of the file that is cut, or no file is known
        and it does not have the kinds of files that the one before it has."""
        if not self.first:
            return
        files, before = self.first[-1], self.first[-2] if len(self.first) > 1 else None
        is_alike = before is not None and sorted(self.kinds[before:files]) == sorted(self.kinds[files:])
        if key != self.last if key is not None else is_alike:
            return
        self.first.pop()
        self.key_ends.pop()
        del self.repeats[-1:]
        for values in (self.kinds, self.offsets, self.lengths):
            del values[files:]
        del self.keys[self.key_ends[-1] if self.key_ends else 0 :]

    def finished(self, left_out: Mapping[str, int], num_bytes: int, fault: str) -> ShardIndex:
        """The index of a shard, whose `fault` is known."""
        self.first.append(len(self.kinds))
        values = {name: getattr(self, name) for name in ShardIndex.ARRAYS}
        arrays: dict[str, Any] = {
            name: np.frombuffer(found, np.int64 if isinstance(found, array) else np.uint8).astype(
                ShardIndex.ARRAYS[name]
            )
            for name, found in values.items()
        }
        extensions = tuple(self.extensions)
        return ShardIndex(**arrays, extensions=extensions, left_out=dict(left_out), num_bytes=num_bytes, fault=fault)


def build_index(read_at: ReadAt, num_bytes: int) -> ShardIndex:
    """The index of an archive of some size, by one pass over it; a damaged one gives the whole samples before that."""
    builder, left_out, fault = _Builder(), Counter[str](), ""
    try:
        for member in members(read_at, num_bytes, left_out):
            name = member.name.removeprefix("./")
            if any(part.startswith(".") for part in name.split("/")):
                left_out["hidden files"] += 1
            elif META.match(name) or (found := KEY.fullmatch(name)) is None:
                left_out["files of no sample"] += 1
            else:
                builder.add(member, found[1], found[2].lower())
    except TarError as error:
        fault = str(error)
        cut = KEY.fullmatch((error.name or "").removeprefix("./"))
        builder.cut(cut and cut[1])
    return builder.finished(left_out, num_bytes, fault)


def save_index(index: ShardIndex, path: Path, stamp: str) -> None:
    """Write an index, which takes its name when it is whole. `stamp` tells its shard from another of the same name."""
    arrays: dict[str, NDArray[Any]] = {name: getattr(index, name) for name in ShardIndex.ARRAYS}
    facts = {name: getattr(index, name) for name in ("extensions", "left_out", "num_bytes", "fault")}
    header = json.dumps({"stamp": stamp, "sizes": [values.nbytes for values in arrays.values()], **facts}).encode()
    content = b"".join(values.tobytes() for values in arrays.values())
    write_atomic(path, _MAGIC + struct.pack("<I", len(header)) + header + content)


def load_index(path: Path, stamp: str, limit: int) -> ShardIndex | None:
    """The index in a file of no more than `limit` bytes; None without one of a shard of this stamp."""
    limit = max(limit, _LEAST_LIMIT)
    try:
        return _parsed(read_regular(path, limit), stamp)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError, struct.error):
        return None


def _parsed(content: bytes, stamp: str) -> ShardIndex:
    start = len(_MAGIC) + 4
    if not content.startswith(_MAGIC):
        raise ValueError("no index")
    end = start + struct.unpack("<I", content[start - 4 : start])[0]
    header: dict[str, Any] = parse_json(content[start:end])
    sizes = [int(size) for size in header["sizes"]]
    if header["stamp"] != stamp or min(sizes) < 0 or end + sum(sizes) != len(content):
        raise ValueError("the index of another shard")
    arrays = dict[str, NDArray[Any]]()
    for (name, kind), size in zip(ShardIndex.ARRAYS.items(), sizes, strict=True):
        arrays[name] = np.frombuffer(content[end : end + size], kind)
        end += size
    index = ShardIndex(
        **arrays,
        extensions=tuple(map(str, header["extensions"])),
        left_out={str(name): int(number) for name, number in header["left_out"].items()},
        num_bytes=int(header["num_bytes"]),
        fault=str(header["fault"]),
    )
    if not _fits(index, index.num_bytes):
        raise ValueError("places outside the shard")
    return index


def _fits(index: ShardIndex, num_bytes: int) -> bool:
    """True if every number of an index leads into its own arrays, and into the shard."""
    num_files = len(index.kinds)
    in_order = (
        len(index.first) == len(index) + 1
        and len(index.repeats) == len(index)
        and len(index.offsets) == len(index.lengths) == num_files <= num_bytes // BLOCK
        and index.first[0] == 0
        and index.first[-1] == num_files
        and bool((np.diff(index.first) > 0).all())
        and bool((np.diff(index.key_ends, prepend=0) > 0).all())
        and (index.key_ends[-1] if len(index) else 0) == len(index.keys)
    )
    return in_order and (
        num_files == 0
        or bool(
            index.kinds.max() < len(index.extensions)
            and index.offsets.min() >= 0
            and index.lengths.min() >= 0
            and max(index.offsets.max(), index.lengths.max()) <= num_bytes  # so that the sum does not overflow
            and (index.offsets + index.lengths).max() <= num_bytes
        )
    )
