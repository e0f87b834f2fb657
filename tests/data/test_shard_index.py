"""Which files a tar file holds and where, held against the standard library's reader; and the index of a shard."""

from __future__ import annotations

import io
import os
import struct
import tarfile
from collections import Counter
from pathlib import Path

import pytest

from impresa.data.shards.index import ShardIndex, build_index, load_index, save_index
from impresa.data.shards.tar import BLOCK, Member, TarError, members
from shards_on_disk import numbered, tar, tar_of

LONG = "a" * 90 + "/" + "b" * 120 + "/0001.txt"
FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def listed(content: bytes) -> tuple[list[Member], Counter[str]]:
    left_out = Counter[str]()
    return list(members(lambda offset, size: content[offset : offset + size], len(content), left_out)), left_out


def index_of(content: bytes) -> ShardIndex:
    return build_index(lambda offset, size: content[offset : offset + size], len(content))


def header_of(content: bytes, **fields: bytes) -> bytes:
    """The first header of an archive with other fields and a right checksum."""
    places = {"size": (124, 12), "kind": (156, 1), "name": (0, 100)}
    header = bytearray(content[:BLOCK])
    for name, value in fields.items():
        start, length = places[name]
        header[start : start + length] = value.ljust(length, b"\0")
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    return bytes(header) + content[BLOCK:]


@pytest.mark.parametrize("format", FORMATS.values(), ids=FORMATS)
def test_members_are_those_that_the_standard_library_finds(format: int) -> None:
    names = ["a.txt", "./b/c.jpg", "d/é.txt", "x" * 100, *([] if format == tarfile.USTAR_FORMAT else [LONG])]
    content = tar_of([(name, name.encode() * 9) for name in names], format=format)
    found, left_out = listed(content)
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        expected = archive.getmembers()
    assert [tuple(one) for one in found] == [(one.name, one.offset_data, one.size) for one in expected]
    assert all(content[one.offset : one.offset + one.size] == one.name.encode() * 9 for one in found)
    assert not left_out


def test_what_is_no_regular_file_is_left_out_and_counted(tmp_path: Path) -> None:
    (tmp_path / "in" / "dir").mkdir(parents=True)
    (tmp_path / "in" / "dir" / "a.txt").write_text("a")
    os.symlink("/etc/passwd", tmp_path / "in" / "b.txt")
    os.link(tmp_path / "in" / "dir" / "a.txt", tmp_path / "in" / "dir" / "c.txt")
    os.mkfifo(tmp_path / "in" / "pipe.txt")
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(tmp_path / "in", "in")
    found, left_out = listed((tmp_path / "a.tar").read_bytes())
    assert [one.name for one in found] == ["in/dir/a.txt"]
    assert left_out == {"folders": 2, "links": 2, "named pipes": 1}


def test_sizes_above_8_gib_are_read_and_lies_are_told() -> None:
    big = header_of(tar_of([("a.txt", b"a")]), size=struct.pack(">BxxxQ", 0x80, 2**40))
    for content in (big, header_of(tar_of([("a.txt", b"a")]), size=b"77777777777")):
        with pytest.raises(TarError, match=r"ends early, after 10240 of \d+ bytes or more"):
            listed(content)
    for size in (b"\xff" * 12, b"12x", b"-1"):
        with pytest.raises(TarError, match=r"is damaged at byte 0 .a size"):
            listed(header_of(tar_of([("a.txt", b"a")]), size=size))


def test_names_and_attributes_without_end_are_refused_unread() -> None:
    content = header_of(tar_of([("a.txt", b"a" * (3 << 20))]), kind=b"L")
    read: list[int] = []

    def read_at(offset: int, size: int) -> bytes:
        read.append(size)
        return content[offset : offset + size]

    with pytest.raises(TarError, match="a name or attributes of more than 1 MiB"):
        list(members(read_at, len(content), Counter()))
    assert max(read) == BLOCK
    for records in (b"12 path=", b"0 path=a\n", b"x", b"9999 path=a\n", b"6 a=b\n" + b"\xff"):
        with pytest.raises(TarError, match=r"is damaged at byte 512 .attributes"):
            listed(header_of(tar_of([("a.txt", records)]), kind=b"x"))


def test_samples_have_webdataset_s_keys() -> None:
    names = ["a.b/1.left.JPG", "a.b/1.txt", "./2.txt", "2.json", "dir/2.txt", "noext", ".hidden.txt", "d/.h/1.txt"]
    names += ["__meta__/x.txt", "._2.txt", "dots./x.txt", "../3.txt", "1.txt/", "a.b/1.txt"]
    index = index_of(tar_of([(name, b"") for name in names]))
    found = [(index.key(n), [index.extensions[kind] for kind, _, _ in index.files(n)]) for n in range(len(index))]
    assert found == [
        ("a.b/1", ["left.jpg", "txt"]),
        ("2", ["txt", "json"]),
        ("dir/2", ["txt"]),
        ("dots./x", ["txt"]),
        ("a.b/1", ["txt"]),
    ]
    assert index.repeats.tolist()[-1] == 1
    assert sum(index.repeats.tolist()) == 1
    assert index.left_out["hidden files"] == 4
    assert index.left_out["files of no sample"] == 3


@pytest.mark.parametrize("cut", ["in the content", "in a header", "in the middle of a sample"])
def test_a_shard_that_ends_early_has_its_whole_samples(cut: str) -> None:
    content = tar(numbered(0, 4))
    places = [one.offset for one in listed(content)[0]]
    end = {
        "in the content": places[9] + 5,
        "in a header": places[9] - 200,
        "in the middle of a sample": places[10] - 512,
    }
    index = index_of(content[: end[cut]])
    assert len(index) == 3
    assert index.fault.startswith("ends early, after")


def test_damage_in_the_middle_and_other_files_are_told() -> None:
    content = bytearray(tar(numbered(0, 4)))
    place = listed(bytes(content))[0][6].offset - BLOCK
    content[place + 10] ^= 1
    index = index_of(bytes(content))
    assert (len(index), index.fault) == (2, f"is damaged at byte {place}, and what follows is lost")
    assert index_of(b"PK" * 5000).fault == "is no tar file"
    assert index_of(b"").fault == "is empty"
    assert (len(index_of(bytes(10240))), index_of(bytes(10240)).fault) == (0, "")


def test_an_index_is_kept_whole_and_refused_for_another_shard(tmp_path: Path) -> None:
    index = index_of(tar(numbered(0, 4)))
    path = tmp_path / "a.tar.impresa-index"
    save_index(index, path, "stamp")
    again = load_index(path, "stamp", 0)
    assert again is not None
    assert [again.files(n) for n in range(4)] == [index.files(n) for n in range(4)]
    assert ([again.key(n) for n in range(4)], again.extensions, again.fault) == (
        [f"{n:06d}" for n in range(4)],
        index.extensions,
        "",
    )
    assert load_index(path, "other", 0) is None
    assert load_index(tmp_path / "gone", "stamp", 0) is None
    path.write_bytes(path.read_bytes()[:-1])
    assert load_index(path, "stamp", 0) is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("first", 99), ("first", -1), ("key_ends", -5), ("kinds", 77), ("offsets", -1), ("offsets", 1 << 50)),
        *(("lengths", -1), ("lengths", 2**63 - 1)),
    ],
)
def test_an_index_that_leads_elsewhere_is_refused(tmp_path: Path, name: str, value: int) -> None:
    index = index_of(tar(numbered(0, 4)))
    values = getattr(index, name).copy()
    values[1] = value
    object.__setattr__(index, name, values)
    save_index(index, tmp_path / "index", "stamp")
    assert load_index(tmp_path / "index", "stamp", 0) is None
