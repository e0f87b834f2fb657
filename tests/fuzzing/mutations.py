"""Damaged and crafted files: random edits of bytes, of PNG chunks and tar headers with right checksums, and of trees of
values."""

from __future__ import annotations

import gzip
import json
import random
import struct
import zlib
from collections.abc import Callable
from typing import Any

import yaml

Mutate = Callable[[bytes, random.Random], bytes]
WORDS = (b"\x00", b"\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\xff", b"\x00\x00\x00\x00", b"\x80", b"\xff\xff\xff\x7f")
VALUES: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 2**31, 2**63, 10**30, -(2**40), 0.5, -0.5, 1e308, 1e-320),
    *(float("nan"), float("inf"), "", "a", "../../etc/passwd", "/dev/zero", "\x1b[2J\u202e", "\ud800", "a" * 10_000),
    *([], {}, [[]], [1] * 1000, {"a": {"b": []}}, "AutoModel", "${oc.env:HOME}", "__import__('os')"),
)


def edit_bytes(data: bytes, rng: random.Random) -> bytes:
    """One to eight random edits."""
    content = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        at = rng.randrange(len(content) + 1)
        length = rng.choice((1, 2, 4, 16, rng.randrange(len(content) + 1)))
        match rng.randrange(7):
            case 0 if at < len(content):
                content[at] ^= 1 << rng.randrange(8)
            case 1:
                content[at : at + length] = rng.randbytes(length)
            case 2:
                word = rng.choice(WORDS)
                content[at : at + len(word)] = word
            case 3:
                del content[at : at + length]
            case 4:
                content[at:at] = content[at : at + length]
            case 5:
                content[at:at] = rng.randbytes(min(length, 64))
            case _:
                del content[at:]
    return bytes(content)


def edit_png(data: bytes, rng: random.Random) -> bytes:
    """Edits within chunks, whose checksums are made right again: what a decoder sees behind its first check."""
    signature, rest, chunks = data[:8], data[8:], []
    while rest:
        (length,) = struct.unpack(">I", rest[:4])
        chunks.append((rest[4:8], rest[8 : 8 + length]))
        rest = rest[12 + length :]
    for _ in range(rng.choice((1, 1, 2, 3))):
        at = rng.randrange(len(chunks))
        kind, content = chunks[at]
        match rng.randrange(6):
            case 0:
                chunks.insert(rng.randrange(len(chunks)), chunks[at])
            case 1 if len(chunks) > 1:
                del chunks[at]
            case 2:
                chunks[at] = (rng.choice((b"tEXt", b"zTXt", b"iCCP", b"PLTE", b"tRNS", b"acTL")), content)
            case 3:
                header = bytearray(chunks[0][1])
                place = rng.randrange(max(1, len(header)))
                word = rng.choice(WORDS)
                header[place : place + len(word)] = word
                chunks[0] = (chunks[0][0], bytes(header[:13]))
            case _:
                chunks[at] = (kind, edit_bytes(content, rng))
    return signature + b"".join(map(_chunk, chunks))


def edit_tar(data: bytes, rng: random.Random) -> bytes:
    """Edits of headers, whose checksums are made right again, of their order, or of any bytes."""
    if rng.random() < 0.3:
        return edit_bytes(data, rng)
    blocks = [data[start : start + 512] for start in range(0, len(data), 512)]
    headers = [number for number, block in enumerate(blocks) if block[257:262] == b"ustar"]
    for _ in range(rng.choice((1, 1, 2, 4))):
        number = rng.choice(headers)
        match rng.randrange(6):
            case 0:
                blocks[number] = b""
            case 1:
                blocks.insert(rng.randrange(len(blocks)), blocks[number])
            case 2:
                blocks[number] = _header(
                    blocks[number], 156, rng.choice((b"L", b"x", b"g", b"K", b"S", b"1", b"5", b"?"))
                )
            case 3:
                size = rng.choice((b"77777777777\0", b"\x80" + bytes(3) + b"\x7f" * 8, b"\xff" * 12, b"0" * 12, b"-1"))
                blocks[number] = _header(blocks[number], 124, size)
            case 4:
                blocks[number] = _header(blocks[number], rng.choice((0, 345)), rng.randbytes(rng.randrange(1, 100)))
            case _:
                at = min(number + 1, len(blocks) - 1)
                blocks[at] = edit_bytes(blocks[at], rng)
    return b"".join(blocks)


def _header(block: bytes, at: int, value: bytes) -> bytes:
    """A header of tar with another field, and a right checksum."""
    header = bytearray(block.ljust(512, b"\0"))
    header[at : at + len(value)] = value
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    return bytes(header)


def edit_packed_tar(data: bytes, rng: random.Random) -> bytes:
    """Damage of the gzip file, or of the tar file in it."""
    return edit_bytes(data, rng) if rng.random() < 0.5 else gzip.compress(edit_tar(gzip.decompress(data), rng), 1)


def _chunk(chunk: tuple[bytes, bytes]) -> bytes:
    kind, content = chunk
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def edit_tree(tree: Any, rng: random.Random) -> Any:
    """The tree with a few of its values replaced, removed, renamed, doubled or wrapped."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        tree = _edited(tree, rng)
    return tree


def _edited(tree: Any, rng: random.Random) -> Any:
    if isinstance(tree, dict | list) and tree and rng.random() < 0.85:
        return _edited_list(tree, rng) if isinstance(tree, list) else _edited_mapping(tree, rng)
    return _nested(tree) if rng.random() < 0.03 else rng.choice(VALUES)


def _edited_list(tree: list[Any], rng: random.Random) -> list[Any]:
    at = rng.randrange(len(tree))
    inner = ([], [tree[at], tree[at]], [_edited(tree[at], rng)])[min(rng.randrange(5), 2)]
    return [*tree[:at], *inner, *tree[at + 1 :]]


def _edited_mapping(tree: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    key = rng.choice(list(tree))
    match rng.randrange(6):
        case 0:
            return {name: value for name, value in tree.items() if name != key}
        case 1:
            name = rng.choice(("", "../up", "/abs", "a\nb", str(key) * 2))
            return {(name if found == key else found): value for found, value in tree.items()}
        case 2:
            return {**tree, rng.choice(("extra", "format", "type")): rng.choice(VALUES)}
        case _:
            return {**tree, key: _edited(tree[key], rng)}


def _nested(tree: Any) -> Any:
    for _ in range(900):
        tree = [tree]
    return tree


def edit_json(data: bytes, rng: random.Random) -> bytes:
    """Mostly other values, now and then other bytes, or deeper nesting than any reader follows."""
    choice = rng.random()
    if choice < 0.25:
        return edit_bytes(data, rng)
    if choice < 0.27:
        return b"[" * 100_000
    return json.dumps(edit_tree(json.loads(data), rng)).encode()


def edit_json_lines(data: bytes, rng: random.Random) -> bytes:
    if rng.random() < 0.4:
        return edit_bytes(data, rng)
    lines = data.splitlines()
    at = rng.randrange(len(lines))
    lines[at] = edit_json(lines[at], rng)
    return b"\n".join(lines) + b"\n"


def edit_yaml(data: bytes, rng: random.Random) -> bytes:
    if rng.random() < 0.3:
        return edit_bytes(data, rng)
    tree = edit_tree(yaml.safe_load(data), rng)
    return yaml.safe_dump(json.loads(json.dumps(tree))).encode("utf-8", "surrogatepass")


def edit_safetensors(data: bytes, rng: random.Random) -> bytes:
    """Other bytes, or another header: names, types, shapes and places of tensors."""
    if rng.random() < 0.4:
        return edit_bytes(data, rng)
    (length,) = struct.unpack("<Q", data[:8])
    header = json.dumps(edit_tree(json.loads(data[8 : 8 + length]), rng)).encode()
    return struct.pack("<Q", len(header)) + header + data[8 + length :]


BY_SUFFIX: dict[str, Mutate] = {
    ".json": edit_json,
    ".jsonl": edit_json_lines,
    ".gz": edit_packed_tar,
    ".png": edit_png,
    ".tar": edit_tar,
    ".safetensors": edit_safetensors,
    ".yaml": edit_yaml,
}


def mutation_of(suffix: str) -> Mutate:
    """The edits that suit a kind of file."""
    return BY_SUFFIX.get(suffix, edit_bytes)
