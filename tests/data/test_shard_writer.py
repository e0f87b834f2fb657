"""What `ShardWriter` writes is read by tar and by our source, and a killed writer loses nothing that it has said."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from full_disk import files_of_at_most
from impresa.config.dataset import DatasetConfig
from impresa.data.shards.places import INDEX_SUFFIX
from impresa.data.shards.writer import Placed, ShardWriter, part_of
from impresa.data.sources import open_path
from pictures import png


def sample(number: int) -> dict[str, bytes]:
    return {"png": png(number), "txt": f"number {number}".encode()}


def visible(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.startswith(".")}


def whole(folder: Path, placed: Placed) -> bytes:
    return (folder / placed.shard).read_bytes()[placed.offset : placed.offset + placed.num_bytes]


def test_places_and_bound(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, 10_000) as writer:
        placed = [writer.add(f"{number:03d}", sample(number)) for number in range(9)]
        assert visible(tmp_path) >= {"00000.tar"}
        assert placed[-1].shard not in visible(tmp_path)
    assert writer.finished == ["00000.tar", "00001.tar", "00002.tar"]
    assert visible(tmp_path) == {name + end for name in writer.finished for end in ("", INDEX_SUFFIX)}
    for number, place in enumerate(placed):
        assert b"number %d" % number in whole(tmp_path, place)
    for name in writer.finished:
        assert (tmp_path / name).stat().st_size <= 10_000
        with tarfile.open(tmp_path / name) as archive:
            assert [member.mtime for member in archive] == [0] * len(archive.getmembers())
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    source = open_path(DatasetConfig(), str(tmp_path))
    assert [source[number].captions for number in range(9)] == [(f"number {number}",) for number in range(9)]
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}  # no index was made anew


def test_a_large_sample_has_a_shard_of_its_own(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, 5_000) as writer:
        shards = [writer.add(str(number), {"bin": bytes(size)}).shard for number, size in enumerate((9, 9_000, 9))]
    assert shards == ["00000.tar", "00001.tar", "00002.tar"]


def test_the_names_are_kept_whatever_they_are(tmp_path: Path) -> None:
    keys = ["a/b", "ö/" + "long" * 60, "x" * 300, "sp ace", b"\xff".decode("utf-8", "surrogateescape")]
    with ShardWriter(tmp_path, 1 << 20) as writer:
        for key in keys:
            writer.add(key, {"left.jpg": b"1", "txt": key.encode("utf-8", "surrogateescape")})
    with tarfile.open(tmp_path / "00000.tar", errors="surrogateescape") as archive:
        assert archive.getnames() == [f"{key}.{end}" for key in keys for end in ("left.jpg", "txt")]


@pytest.mark.parametrize(
    ("key", "files"),
    [
        ("a.b", {"jpg": b""}),
        ("", {"jpg": b""}),
        (".a", {"jpg": b""}),
        ("__x__/a", {"jpg": b""}),
        ("a", {}),
        ("a", {"b/c": b""}),
        ("a", {"JPG": b""}),
        ("a", {"": b""}),
        ("a/.b/c", {"jpg": b""}),
        ("../a", {"jpg": b""}),
        ("/a", {"jpg": b""}),
    ],
)
def test_names_that_readers_take_apart_are_refused(tmp_path: Path, key: str, files: Mapping[str, bytes]) -> None:
    with ShardWriter(tmp_path, 1000) as writer, pytest.raises(ValueError, match="name"):
        writer.add(key, files)
    assert visible(tmp_path) == set()


def test_two_samples_of_one_name_would_be_one(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, 1 << 20) as writer:
        writer.add("a", sample(1))
        with pytest.raises(ValueError, match="the sample before"):
            writer.add("a", sample(2))


def write(folder: Path, count: int, error: BaseException | None = None) -> None:
    with ShardWriter(folder, 1 << 20) as writer:
        for number in range(count):
            writer.add(str(number), sample(number))
        if error is not None:
            raise error


def test_an_error_leaves_no_shard(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, 1, KeyboardInterrupt())
    assert visible(tmp_path) == set()


def test_a_full_disk_is_an_error_that_names_the_shard(tmp_path: Path) -> None:
    with files_of_at_most(3_000), pytest.raises(OSError, match="File too large") as caught:
        write(tmp_path, 9)
    assert caught.value.filename == str(tmp_path / "00000.tar")
    assert visible(tmp_path) == set()


KILLED = """
import os, signal, sys
from pathlib import Path
from impresa.data.shards.writer import ShardWriter

writer = ShardWriter(Path(sys.argv[1]), 1 << 20)
for number in range(5):
    print(*writer.add(str(number), {"txt": b"number %d" % number}), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_writer_is_continued(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL
    places = [line.split() for line in done.stdout.splitlines()]
    assert visible(tmp_path) == set()
    kept = int(places[3][1])  # the last two are not on record
    os.truncate(part_of(tmp_path, 0), part_of(tmp_path, 0).stat().st_size - 100)
    with ShardWriter(tmp_path, 1 << 20, kept_bytes=kept) as writer:
        assert writer.add("new", {"txt": b"new"}).offset == kept
    with tarfile.open(tmp_path / "00000.tar") as archive:
        assert archive.getnames() == ["0.txt", "1.txt", "2.txt", "new.txt"]
    with pytest.raises(ValueError, match="fewer than"):
        ShardWriter(tmp_path, 1 << 20, first=1, kept_bytes=1)
