"""Shards from elsewhere: what is copied, how much of it is kept, and servers that do not do as they should."""

from __future__ import annotations

import gzip
import http.server
import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import fsspec
import pytest

from impresa.config.dataset import DatasetConfig
from impresa.data.shards import places, remote
from impresa.data.shards.cache import ShardCache, cache_folder
from impresa.data.sources import BadSample, open_path
from impresa.data.sources.base import Blocks
from impresa.errors import DataError
from shards_on_disk import numbered, tar, write_shards

CONFIG = DatasetConfig()
MIB = 1 << 20


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("time.sleep", lambda _: None)


def captions(path: Path | str, **keys: Any) -> list[str]:
    return list(open_path(replace(CONFIG, **keys), str(path)).captions())


def copies() -> list[Path]:
    return sorted(cache_folder().glob("*.tar"))


def keep(cache: ShardCache, key: str, size: int = MIB) -> None:
    cache.opened(key, size, lambda file: file.write(bytes(size)) and None).close()


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers as the path says: `/FAULT/NAME.tar`."""

    content = tar(numbered(0, 5))
    asked: ClassVar[list[str]] = []

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        fault = self.path.split("/")[1]
        if body:
            self.asked.append(self.path)
        if fault == "gone" or (fault == "once" and body and self.asked.count(self.path) == 1):
            self.send_error(404 if fault == "gone" else 503)
            return
        told = len(self.content) + 512 * (fault == "short")
        self.send_response(200)
        if fault != "endless":
            self.send_header("Content-Length", str(told))
        self.end_headers()
        if body:
            self.wfile.write(self.content)
            while fault == "endless":
                try:
                    self.wfile.write(bytes(MIB))
                except OSError:
                    return

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    Handler.asked.clear()
    found = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=found.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{found.server_port}"
    found.shutdown()
    found.server_close()


def test_gzip_is_unpacked_once_into_the_cache_whatever_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    (folder / "a.tar.gz").write_bytes(gzip.compress(tar(numbered(0, 3))))
    (folder / "b.tgz").write_bytes(gzip.compress(tar(numbered(3, 3))))
    (folder / "c.tar").write_bytes(gzip.compress(tar(numbered(6, 2))) + gzip.compress(b""))
    assert captions(folder) == [f"number {n}" for n in range(8)]
    assert len(copies()) == 3
    monkeypatch.setattr(places.gzip, "GzipFile", lambda **_: pytest.fail("was unpacked before"))
    assert captions(folder) == [f"number {n}" for n in range(8)]


def test_damaged_gzip_gives_the_samples_before_the_damage(tmp_path: Path) -> None:
    content = gzip.compress(os.urandom(100))
    whole = gzip.compress(tar({f"{n}": {"png": os.urandom(2000), "txt": b"a"} for n in range(9)}))
    (tmp_path / "a.tar.gz").write_bytes(whole[: len(whole) // 2])
    found = open_path(CONFIG, str(tmp_path / "a.tar.gz"))
    assert 2 < len(found) - 1 < 9
    with pytest.raises(BadSample, match=r"a\.tar\.gz:end: the shard ends early"):
        found[len(found) - 1]
    (tmp_path / "b.tar.gz").write_bytes(content[:20])
    with pytest.raises(DataError, match=r"no samples .b\.tar\.gz"):
        open_path(CONFIG, str(tmp_path / "b.tar.gz"))


def test_a_gzip_bomb_is_refused_while_it_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(bytes(64 * MIB)))
    monkeypatch.setattr(places, "_BOMB_BYTES", 8 * MIB)
    with pytest.raises(DataError, match=r"a\.tar\.gz: unpacks to more than 100 times its size"):
        open_path(CONFIG, str(tmp_path / "a.tar.gz"))
    with pytest.raises(DataError, match=r"unpacks to more than dataset\.shard_cache_gib=0\.001"):
        open_path(replace(CONFIG, shard_cache_gib=0.001), str(tmp_path / "a.tar.gz"))
    assert [path for path in cache_folder().iterdir() if path.suffix != ".lock"] == []


def test_shards_at_an_address(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    for shard in range(3):
        memory.pipe(f"/bucket/{shard:04d}.tar", tar(numbered(5 * shard, 5)))
    everything = [f"number {n}" for n in range(15)]
    for path in ("memory:///bucket/{0000..0002}.tar", "memory://bucket/*.tar", "memory://bucket"):
        assert captions(path) == everything
    assert len(copies()) == 3
    found = open_path(CONFIG, "memory://bucket/*.tar")
    assert found[7].id == "0001.tar/000007"
    for path in copies():
        path.unlink()  # as another process may do
    assert found[7].captions == ("number 7",)
    with pytest.raises(DataError, match=r"^memory://bucket/0009\.tar: there is no such file"):
        captions("memory://bucket/0009.tar")
    with pytest.raises(DataError, match=r"^nosuch://bucket/a\.tar: cannot be read .Protocol not known"):
        captions("nosuch://user:secret@bucket/a.tar")
    memory.pipe("/bucket/0000.tar", tar(numbered(80, 5)))
    assert captions("memory://bucket/0000.tar") == [f"number {n}" for n in range(80, 85)]


def test_servers_that_do_not_do_as_they_should(server: str) -> None:
    assert captions(f"{server}/good/a.tar?signature=x") == [f"number {n}" for n in range(5)]
    assert captions(f"{server}/once/a.tar") == [f"number {n}" for n in range(5)]
    for fault, line in {
        "gone": "there is no such file",
        "endless": r"is larger than dataset\.shard_cache_gib=0\.01",
        "short": "cannot be read",
    }.items():
        with pytest.raises(DataError, match=f"/{fault}/a.tar: .*({line})") as caught:
            captions(f"{server}/{fault}/a.tar?signature=x", shard_cache_gib=0.01)
        assert "signature" not in str(caught.value)
    assert len(copies()) == 2
    assert list(cache_folder().glob(".*.tmp")) == []


def test_a_server_that_does_not_answer_is_not_one_without_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("impresa.data.shards.remote._TRIES", 1)
    with pytest.raises(DataError, match=r"^http://127\.0\.0\.1:1/a\.tar: cannot be read \(.*; fix the server"):
        captions("http://127.0.0.1:1/a.tar?signature=x")


def test_the_cache_keeps_to_its_size_and_to_what_was_used_last(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path / "shards", 3 * MIB)
    for n, key in enumerate("abc"):
        keep(cache, key)
        os.utime(cache.folder / f"{key}.tar", (n, n))
    keep(cache, "a")  # used again
    keep(cache, "d")
    assert sorted(path.stem for path in cache.folder.glob("*.tar")) == ["a", "c", "d"]
    held = cache.opened("a", 0, lambda _: pytest.fail("is there"))
    keep(cache, "e", 3 * MIB)
    assert sorted(path.stem for path in cache.folder.glob("*.tar")) == ["e"]
    assert len(held.read()) == MIB
    held.close()


def fill_slowly(file: BinaryIO) -> None:
    with open(os.environ["FILLS"], "a") as log:
        log.write("x")
    file.write(bytes(MIB))
    threading.Event().wait(0.2)


def test_several_processes_fill_a_file_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FILLS", str(tmp_path / "fills"))
    cache = ShardCache(tmp_path / "shards", 9 * MIB)
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=cache.opened, args=("a", 0, fill_slowly)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert (tmp_path / "fills").read_text() == "x"


def test_a_process_that_is_killed_while_it_fills_leaves_nothing_that_is_read(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from impresa.data.shards.cache import ShardCache\n"
        "def fill(file): file.write(b'half'); file.flush(); os.kill(os.getpid(), signal.SIGKILL)\n"
        f"ShardCache(Path({str(tmp_path)!r}), 99).opened('a', 0, fill)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    assert len(list(tmp_path.glob(".a.tar.*.tmp"))) == 1
    with ShardCache(tmp_path, MIB).opened("a", 0, lambda file: file.write(b"whole") and None) as file:
        assert file.read() == b"whole"
    assert list(tmp_path.glob(".a.tar.*.tmp")) == []


def test_order_keeps_to_the_shards_that_fit_into_the_cache(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    for shard in range(4):
        memory.pipe(f"/blocks/{shard}.tar", tar(numbered(5 * shard, 5)))
    size = len(tar(numbered(0, 5)))
    found = open_path(replace(CONFIG, shard_cache_gib=3 * size / (1 << 30)), "memory://blocks/*.tar")
    assert found.blocks() == Blocks((5, 5, 5, 5), 1)
    assert [found[n].captions for n in range(20)] == [(f"number {n}",) for n in range(20)]
    assert len(copies()) == 3
    assert open_path(CONFIG, "memory://blocks/*.tar").blocks() is None
    assert open_path(replace(CONFIG, shard_cache_gib=1e-6), str(write_shards(tmp_path / "local"))).blocks() is None


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: str) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(remote, "_system", fails)
    with pytest.raises(DataError, match=r"^s3://b/a\.tar: a package is missing .Install s3fs"):
        captions("s3://b/a.tar")
