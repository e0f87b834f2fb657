"""Shards and the webdataset package: we read what it writes, and it reads what we pack."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from impresa.cli.main import main
from impresa.config.dataset import DatasetConfig
from impresa.data.shards.index import build_index
from impresa.data.sources import open_path
from pictures import png
from shards_on_disk import tar_of

webdataset = pytest.importorskip("webdataset")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def read_by_them(path: str) -> Iterator[dict[str, Any]]:
    return iter(webdataset.WebDataset(path, shardshuffle=False))


@pytest.mark.parametrize("end", ["tar", "tar.gz"])
def test_we_read_what_it_writes(tmp_path: Path, end: str) -> None:
    with webdataset.ShardWriter(str(tmp_path / f"%04d.{end}"), maxcount=4, verbose=0) as writer:
        for n in range(10):
            sample = {"png": png(n), "txt": f"number {n}", "json": {"label": n}, "weights.pyd": {"a": n}}
            writer.write({"__key__": f"dir/{n:06d}", **sample})
    found = open_path(DatasetConfig(), str(tmp_path))
    assert [found[n].captions for n in range(10)] == [(f"number {n}",) for n in range(10)]
    assert [found[n].label for n in range(10)] == [str(n) for n in range(10)]
    assert [found[n].id for n in (0, 9)] == [f"0000.{end}/dir/000000", f"0002.{end}/dir/000009"]


def test_keys_and_kinds_are_its_own(tmp_path: Path) -> None:
    names = [
        "a.b/1.left.JPG",
        "a.b/1.txt",
        "2.x",
        "d/2.x",
        "d/2.y.z",
        "noext",
        "__meta__/x.txt",
        "3.",
        "x/y.tar.gz",
        "4.a",
    ]
    content = tar_of([(name, json.dumps(name).encode()) for name in names])
    (tmp_path / "a.tar").write_bytes(content)
    index = build_index(lambda offset, size: content[offset : offset + size], len(content))
    ours = [
        (index.key(n), {index.extensions[kind]: content[at : at + size] for kind, at, size in index.files(n)})
        for n in range(len(index))
    ]
    theirs = [
        (sample["__key__"], {name: value for name, value in sample.items() if not name.startswith("__") and name})
        for sample in read_by_them(str(tmp_path / "a.tar"))
    ]
    assert ours == [(key, files) for key, files in theirs if files]


def test_it_reads_what_we_pack(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for n in range(6):
        (tmp_path / "data" / f"{n}.png").write_bytes(png(40 * n))
        (tmp_path / "data" / f"{n}.txt").write_text(f"number {n}")
    words = ["data", "pack", str(tmp_path / "data"), "--out", str(tmp_path / "out"), "--split", "1", "--shard-size=6KB"]
    assert main(words) == 0
    shards = sorted(str(path) for path in (tmp_path / "out" / "train").glob("*.tar"))
    assert len(shards) > 1
    found = [sample for shard in shards for sample in read_by_them(shard)]
    assert [sample["__key__"] for sample in found] == [f"{n:09d}" for n in range(6)]
    assert [sample["png"] for sample in found] == [png(40 * n) for n in range(6)]
    assert [sample["txt"].decode() for sample in found] == [f"number {n}" for n in range(6)]
    assert [json.loads(sample["json"])["source_id"] for sample in found] == [f"{n}.png" for n in range(6)]
