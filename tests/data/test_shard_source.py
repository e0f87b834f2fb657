"""Tar shards as a source of samples: columns, faults, order, and what is never read."""

from __future__ import annotations

import io
import json
import logging
import os
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from impresa.config.dataset import DatasetConfig
from impresa.data.check import inspect_source
from impresa.data.sampler import BatchSampler
from impresa.data.sources import BadSample, Reading, open_path, open_source, open_train_and_val
from impresa.data.sources.base import say_once
from impresa.data.sources.parquet import ParquetSource
from impresa.data.sources.webdataset import ShardSource
from impresa.errors import DataError
from pictures import png, write_jsonl
from shards_on_disk import numbered, tar, tar_of, write_shards
from sounds_on_disk import sine

CONFIG = DatasetConfig()


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    say_once.cache_clear()


def source(path: Path | str, reading: Reading | None = None, **keys: Any) -> ShardSource:
    found = open_path(replace(CONFIG, **keys), str(path), reading or Reading())
    assert isinstance(found, ShardSource)
    return found


def shard(folder: Path, *files: tuple[str, bytes]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "a.tar").write_bytes(tar_of(files))
    return folder


def reason(found: ShardSource, index: int) -> str:
    with pytest.raises(BadSample) as caught:
        found[index]
    return caught.value.reason


def test_shards_are_found_by_every_kind_of_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_shards(tmp_path / "shards")
    monkeypatch.chdir(tmp_path)
    (folder / "0001.parquet").write_bytes(b"")  # as img2dataset writes them
    for path in (folder, "shards/{0000..0002}.tar", "shards/{0000,0001,0002}.tar", "shards/*.tar", f"file://{folder}"):
        found = source(path)
        assert [found[n].captions for n in range(len(found))] == [(f"number {n}",) for n in range(15)]
    assert (found[7].id, found[7].label, found[7].image.size) == ("0001.tar/000007", "1", (8, 8))
    assert len(source("shards/0002.tar")) == 5
    for path, line in {
        "shards/{0000..0004}.tar": "shards/0003.tar: there is no such shard",
        "pipe:cat shards/0000.tar": "pipe:cat shards/0000.tar: commands are not run",
        "shards/{0..9999999}.tar": "braces stand for more than 1000000 names",
        "shards/x*.tar": "no tar shards there",
        "https://u:secret@host/data.csv?sig=secret": "^https://host/data.csv: only tar shards and parquet are read",
    }.items():
        with pytest.raises(DataError, match=line) as caught:
            source(path)
        assert "secret" not in str(caught.value)


def test_samples_are_those_of_the_same_rows_in_other_files(tmp_path: Path) -> None:
    rows = [{"image": f"{n}.png", "caption": ["a", f"b {n}"], "label": n % 2} for n in range(4)]
    folder = open_path(CONFIG, str(write_jsonl(tmp_path / "folder", rows)))
    texts = [{"caption": row["caption"], "label": row["label"], "image": "/etc/passwd"} for row in rows]
    files = [
        (f"{n}.{end}", content)
        for n, row in enumerate(texts)
        for end, content in (("png", png(n)), ("json", json.dumps(row).encode()))
    ]
    found = source(shard(tmp_path / "shards", *files))
    for n in range(4):
        assert (found[n].captions, found[n].label) == (folder[n].captions, folder[n].label)
        assert found[n].image_key == folder[n].image_key
    assert list(found.captions()) == list(folder.captions())


def test_files_of_their_own_come_before_json_and_columns_can_be_files(tmp_path: Path) -> None:
    content = json.dumps({"caption": "json", "label": "json", "question": "q", "answer": "a"}).encode()
    parts = [
        ("1.left.png", png(1)),
        ("1.right.PNG", png(2)),
        ("1.json", content),
        ("1.txt", b"one\ntwo\n"),
        ("1.cls", b"7\n"),
    ]
    folder = shard(tmp_path / "a", *parts)
    found = source(folder, image_column="left.png")
    assert (found[0].captions, found[0].label, found[0].image.getpixel((0, 0))) == (("one", "two"), "7", (1, 0, 7))
    assert source(folder, image_column="right.png")[0].image.getpixel((0, 0)) == (2, 0, 7)
    with pytest.raises(DataError, match=r"no column 'image' .there are: caption, label, left\.png"):
        source(folder)
    asked = source(folder, Reading(dialogues=True), image_column="left.png")
    assert asked[0].dialogues[0].turns[0].question == "q"
    both = shard(tmp_path / "b", ("1.png", png(1)), ("1.jpg", png(2)), ("1.txt", b"a"))
    assert reason(source(both), 0).startswith("the row has several images (2)")
    pair = source(both, Reading(dialogues=True, max_images=2))
    assert [image.getpixel((0, 0))[0] for image in pair[0].images] == [1, 2]
    sound = io.BytesIO()
    soundfile.write(sound, np.asarray(sine(440, 0.2)), 16_000, format="WAV")
    heard = source(shard(tmp_path / "c", ("1.wav", sound.getvalue()), ("1.txt", b"a")), Reading(audio_seconds=1.0))
    assert heard[0].audio is not None
    assert heard[0].audio.rate_hz == 16_000


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os._exit, (3,)


def test_pickles_are_never_read(tmp_path: Path) -> None:
    bomb = pickle.dumps(Bomb())
    kinds = ("pyd", "pickle", "pkl", "pth", "pt", "npy", "npz", "ten")
    files = [("1.png", png(1)), ("1.txt", b"a"), *((f"1.{kind}", bomb) for kind in kinds)]
    found = source(shard(tmp_path / "a", *files))
    assert found[0].captions == ("a",)
    with pytest.raises(DataError, match="no column 'image'"):
        source(shard(tmp_path / "b", ("1.pyd", bomb), ("1.txt", b"a")))
    as_text = source(shard(tmp_path / "c", ("1.png", png(1)), ("1.pyd", bomb)), caption_column="pyd")
    assert "UTF-8" in reason(as_text, 0)


def test_damaged_shards_give_their_whole_samples_and_the_next_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_shards(tmp_path / "shards", num_shards=4)
    (folder / "0001.tar").write_bytes((folder / "0001.tar").read_bytes()[:8710])
    (folder / "0002.tar").write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        found = source(folder)
    summary = inspect_source(found)
    assert summary.num_good == 5 + 2 + 0 + 5
    assert [(row.id, row.reason) for row in summary.bad] == [
        ("0001.tar:end", "the shard ends early, after 8710 of 8716 bytes or more"),
        ("0002.tar:end", "the shard is empty"),
    ]
    assert caplog.text.count("0001.tar ends early") == caplog.text.count("0002.tar is empty") == 1
    assert len(list(found.captions_by_sample())) == len(list(found.image_keys())) == len(found) == 14
    with pytest.raises(DataError, match=r"no samples .0002\.tar is empty"):
        source(folder / "0002.tar")


def test_what_is_left_out_or_double_is_counted_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = [
        ("1.png", png(1)),
        ("1.txt", b"a"),
        ("2.png", png(2)),
        ("2.PNG", png(2)),
        ("2.txt", b"b"),
        ("._1.png", b""),
    ]
    files += [("README", b""), ("1.png", png(3)), ("1.txt", b"c"), ("3.json", b"[]"), ("3.png", png(1))]
    files += [("4.png", png(2)), ("4.json", b"{a")]
    with caplog.at_level(logging.INFO):
        found = source(shard(tmp_path / "a", *files))
    assert found.left_out == {"hidden files": 1, "files of no sample": 1}
    assert "2 files are left out (hidden files 1, files of no sample 1)" in caplog.text
    assert "1 samples have the name of an earlier one in their shard, the first is a.tar/1" in caplog.text
    assert [found[n].captions for n in (0, 2)] == [("a",), ("c",)]
    assert [found[n].id for n in (0, 2)] == ["a.tar/1", "a.tar/1#2"]
    assert reason(found, 1) == "the sample has two .png files"
    assert reason(found, 3) == "the .json file is no JSON object"
    assert reason(found, 4).startswith("the .json file is no JSON (")


def test_limits_hold_before_anything_is_read(tmp_path: Path) -> None:
    folder = shard(tmp_path / "a", ("1.png", png(1)), ("1.txt", b"a"), ("2.png", b"x" * (3 << 20)), ("2.txt", b"b"))
    found = source(folder, max_file_mib=1)
    assert found[0].captions == ("a",)
    assert reason(found, 1) == "the .png file has 3 MiB, more than dataset.max_file_mib=1"
    assert len(list(found.image_keys())) == 2


def test_a_shard_that_changes_is_noticed(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "shards", num_shards=1)
    found, before = source(folder), (folder / "0000.tar").stat()
    (folder / "0000.tar").write_bytes(tar(numbered(50, 5)))
    os.utime(folder / "0000.tar", ns=(before.st_atime_ns, before.st_mtime_ns + 10**9))  # a clock may tick slowly
    assert "has changed since" in reason(found, 0)
    assert source(folder)[0].captions == ("number 50",)


def test_the_index_lies_beside_the_shard_or_in_the_cache_and_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_shards(tmp_path / "shards")
    source(folder)
    assert len(list(folder.glob("*.impresa-index"))) == 3
    monkeypatch.setattr("impresa.data.shards.places.build_index", lambda *_: pytest.fail("is not used"))
    assert len(source(folder)) == 15
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for beside in folder.glob("*.impresa-index"):
        beside.unlink()
        beside.mkdir()  # nothing can be written there, whoever one is
        (beside / "x").touch()
    assert len(source(folder)) == 15
    assert len(list((tmp_path / "cache" / "impresa" / "shards").glob("*.impresa-index"))) == 3


def open_shards(folder: Path) -> list[str]:
    handles = (f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd"))
    names = [os.readlink(handle) for handle in handles if os.path.exists(handle)]
    return [name for name in names if name.startswith(str(folder)) and name.endswith(".tar")]


def test_a_handle_for_each_shard_and_none_in_another_process(tmp_path: Path) -> None:
    found = source(write_shards(tmp_path / "shards"))
    for n in range(15):
        found[n]
    assert len(open_shards(tmp_path)) == 3
    assert pickle.loads(pickle.dumps(found))[7].captions == ("number 7",)
    reading, writing = os.pipe()
    if not (child := os.fork()):
        found[7]
        os.write(writing, str(len(open_shards(tmp_path))).encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reading, 9) == b"1"
    assert found[7].captions == ("number 7",)
    os.close(reading)
    os.close(writing)


def test_division_and_order_are_those_of_any_source(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = write_shards(tmp_path / "shards", num_shards=4, each=10)
    rows = {"image": [png(n) for n in range(40)], "caption": [f"number {n}" for n in range(40)]}
    pq.write_table(pa.table(rows), tmp_path / "a.parquet")
    config = replace(CONFIG, train_path=str(folder), val_fraction=0.2)
    parts = [{part[n].captions for n in range(len(part))} for part in open_train_and_val(config)]
    other = replace(config, train_path=str(tmp_path / "a.parquet"))
    assert parts == [{part[n].captions for n in range(len(part))} for part in open_train_and_val(other)]
    assert isinstance(open_path(CONFIG, other.train_path), ParquetSource)
    sampler = BatchSampler(
        num_samples=40,
        batch_size=4,
        seed=3,
        blocks=open_source(replace(config, val_path=str(folder)), "train").blocks(),
    )
    batches = list(sampler)
    resumed = BatchSampler(num_samples=40, batch_size=4, seed=3)
    resumed.load_state_dict({**resumed.state_dict(), "next_batch": 6})
    assert list(resumed) == batches[6:]
