"""Data sets of the `datasets` library, on disk and by id, are the samples that the same rows are in parquet."""

from __future__ import annotations

import io
import json
import logging
import os
import pickle
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import soundfile

from impresa.cli.main import main
from impresa.config import ExperimentConfig
from impresa.config.dataset import DatasetConfig
from impresa.config.hub_names import HubName, hub_name
from impresa.config.paths import check_data_paths
from impresa.data.sources import BadSample, Reading, Source, open_path, open_train_and_val
from impresa.data.sources.base import say_once
from impresa.data.sources.columns import guess_columns
from impresa.data.sources.hub import HubSource
from impresa.errors import ConfigError, DataError
from pictures import numbered as numbered_paths
from pictures import png, write_jsonl
from saved_on_disk import arrow, numbered, save, save_splits
from sounds_on_disk import sine

CONFIG = DatasetConfig()
FIRST = "data-00000-of-00001.arrow"


@pytest.fixture(autouse=True)
def _say_again() -> None:
    say_once.cache_clear()


def seen(source: Source) -> list[tuple[Any, ...]]:
    """All of each sample but its name; of a bad one its reason."""
    found: list[tuple[Any, ...]] = []
    for index in range(len(source)):
        try:
            sample = source[index]
        except BadSample as fault:
            found.append((fault.reason,))
        else:
            pixels = sample.image and (sample.image.size, sample.image.tobytes())
            sound = sample.audio and sample.audio.samples.tolist()
            found.append((pixels, sample.captions, sample.label, sound, sample.dialogues))
    return found


def opened(path: Path | str, reading: Reading = Reading(), **keys: Any) -> HubSource:  # noqa: B008 - it is frozen
    found = open_path(replace(CONFIG, **keys), str(path), reading)
    assert isinstance(found, HubSource)
    return found


def test_a_saved_data_set_is_the_same_samples_as_in_parquet(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = {name: [row[name] for row in numbered(0, 10)] for name in ("caption", "label")}
    rows |= {"image": [{"bytes": png(n), "path": None} for n in range(10)], "question": ["what?"] * 10}
    rows |= {"answer": [f"it is {n}" for n in range(10)]}
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "caption": datasets.List(datasets.Value("string")),
            "label": datasets.ClassLabel(names=["even", "odd"]),
            "question": datasets.Value("string"),
            "answer": datasets.Value("string"),
        }
    )
    whole = datasets.Dataset.from_dict(rows, features=features)
    whole.save_to_disk(str(tmp_path / "saved"), num_shards=3)
    whole.to_parquet(str(tmp_path / "a.parquet"))
    for reading in (Reading(), Reading(dialogues=True)):
        found = opened(tmp_path / "saved", reading)
        theirs = open_path(CONFIG, str(tmp_path / "a.parquet"), reading)
        assert seen(found) == seen(theirs)
        assert seen(found)[3][2] == "odd"
        assert [*found.captions()] == [*theirs.captions()]
        assert [*found.image_keys()] == [*theirs.image_keys()]
    assert len({found[n].id for n in range(10)}) == 10


def test_rows_of_another_order_are_saved_as_they_are_seen(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    whole = datasets.Dataset.from_list(numbered(0, 10)).shuffle(seed=0).select(range(4))
    whole.save_to_disk(str(tmp_path / "saved"))
    assert [s[1] for s in seen(opened(tmp_path / "saved"))] == [tuple(row["caption"]) for row in whole]


def test_images_and_sounds_by_path_are_kept_in_the_file(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    file, wave = io.BytesIO(), np.asarray(sine(440, 0.2))
    soundfile.write(file, wave, 16_000, format="FLAC")
    (tmp_path / "a.png").write_bytes(png(5))
    row = {"image": [str(tmp_path / "a.png")], "audio": [{"bytes": file.getvalue(), "path": None}], "caption": ["a"]}
    whole = datasets.Dataset.from_dict(row).cast_column("image", datasets.Image())
    whole = whole.cast_column("audio", datasets.Audio(decode=False))
    whole.save_to_disk(str(tmp_path / "saved"))
    (tmp_path / "a.png").unlink()
    (sample,) = (opened(tmp_path / "saved", Reading(audio_seconds=1.0))[0],)
    assert sample.image is not None
    assert sample.image.getpixel((0, 0)) == (5, 0, 7)
    assert sample.audio is not None
    assert len(sample.audio.samples) == len(wave)


def test_every_form_of_folder_is_known_by_itself(tmp_path: Path) -> None:
    one = save(tmp_path / "one", [arrow(numbered(0, 7)), arrow(numbered(7, 2))])
    both = save_splits(tmp_path / "both", test=[arrow(numbered(0, 2))], train=[arrow(numbered(2, 4))])
    assert len(opened(one)) == len(opened(one, source="hub")) == 9
    assert len(opened(one / "data-00000-of-00002.arrow")) == 7
    assert len(opened(both)) == 4
    assert len(opened(both / "test")) == 2
    (one / "cache-1.arrow").write_bytes(arrow(numbered(0, 3)))  # what `map` leaves there
    assert len(opened(one)) == 9
    with_pictures = write_jsonl(tmp_path / "folder", numbered_paths(2))
    (with_pictures / "cache-1.arrow").write_bytes(arrow(numbered(0, 3)))
    assert not isinstance(open_path(CONFIG, str(with_pictures)), HubSource)


def test_which_split_is_read_is_said_and_asked_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    both = save_splits(tmp_path / "both", test=[arrow(numbered(0, 2))], train=[arrow(numbered(2, 4))])
    with caplog.at_level(logging.INFO):
        opened(both)
    assert caplog.messages == [f"{both}: the split train is read, of test and train; {both}/SPLIT names another"]
    other = save_splits(tmp_path / "other", a=[arrow(numbered(0, 2))], b=[arrow(numbered(2, 4))])
    with pytest.raises(DataError, match=rf"{other}: there are the splits a and b; name one, as {other}/a$"):
        opened(other)
    assert len(opened(save_splits(tmp_path / "only", test=[arrow(numbered(0, 2))]))) == 2


def test_rows_are_read_in_any_order_and_in_other_processes(tmp_path: Path) -> None:
    source = opened(save(tmp_path, [arrow(numbered(0, 7)), arrow(numbered(7, 5), each=2)]))
    in_order = seen(source)
    again = pickle.loads(pickle.dumps(source))
    assert [seen_one(again, n) for n in (11, 0, 6, 7)] == [in_order[n] for n in (11, 0, 6, 7)]
    assert source.blocks() is None
    train, val = open_train_and_val(DatasetConfig(train_path=str(tmp_path), val_fraction=0.25))
    assert (len(train), len(val)) == (9, 3)
    assert source.origin(3) == again.origin(3) != source.origin(4)


def seen_one(source: Source, index: int) -> tuple[Any, ...]:
    class One:
        def __len__(self) -> int:
            return 1

        def __getitem__(self, _: int) -> Any:
            return source[index]

    return seen(One())[0]  # type: ignore[arg-type]


def test_a_file_that_ends_early_gives_what_comes_before(tmp_path: Path) -> None:
    content = arrow(numbered(0, 9))
    whole = seen(opened(save(tmp_path / "whole", [content])))
    for cut, rows in ((8, 9), (9, 6), (len(content) // 2, 3)):
        source = opened(save(tmp_path / str(cut), [content[:-cut], content]))
        *good, end = seen(source)[: rows + 1]
        assert good == whole[:rows]
        assert re.fullmatch(rf"the file .*, after {rows} rows", end[0])
        assert source.row(rows).id.endswith("of-00002.arrow:end")
        assert seen(source)[rows + 1 :] == whole
        assert len([*source.image_keys()]) == len(source) == rows + 1 + 9


def test_what_a_batch_says_of_itself_is_checked_before_it_is_read(tmp_path: Path) -> None:
    offsets = np.array([0, 1 << 30, 2], np.int32)
    captions = pa.StringArray.from_buffers(2, pa.py_buffer(offsets), pa.py_buffer(b"ab"))
    batch = pa.record_batch({"image": pa.array([png(0), png(1)]), "caption": captions})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    source = opened(save(tmp_path, [arrow(numbered(0, 2)), sink.getvalue().to_pybytes()]), label_column="none")
    assert len(source) == 4
    assert all("its batch is damaged" in reason for (reason,) in seen(source)[2:])
    assert [*source.captions()] == ["number 0", "the picture 0", "number 1", "the picture 1"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda folder: (folder / "state.json").write_text("{"),
            r"state\.json: Invalid JSON.*; save the data set again",
        ),
        (lambda folder: (folder / "state.json").write_text('{"_data_files": []}'), r"names no files"),
        (
            lambda folder: (folder / "state.json").write_text('{"_data_files": [{"filename": "../a.arrow"}]}'),
            r"state\.json: '\.\./a\.arrow' does not stay in its folder",
        ),
        (
            lambda folder: (folder / "state.json").write_text(
                '{"_data_files": [{"filename": "a"}], "_indices_data_files": [{"filename": "b"}]}'
            ),
            r"its rows are in another order",
        ),
        (lambda folder: (folder / FIRST).unlink(), r"arrow: .*No such file"),
        (lambda folder: (folder / FIRST).write_bytes(b""), r"is no arrow stream"),
        (
            lambda folder: (folder / FIRST).write_bytes(arrow([{"image": b"", "text": "a"}])),
            r"no column 'caption' \(there are: image, text\); set dataset\.caption_column",
        ),
        (
            lambda folder: (folder / FIRST).write_bytes(arrow([{"image": 3, "caption": "a"}])),
            r"column 'image' is int64; it must hold bytes or paths of images",
        ),
    ],
)
def test_a_damaged_folder_is_one_line(tmp_path: Path, change: Callable[[Path], object], message: str) -> None:
    change(save(tmp_path, [arrow(numbered(0, 2))]))
    with pytest.raises(DataError, match=message) as caught:
        opened(tmp_path)
    assert "\n" not in str(caught.value)


def test_its_columns_are_guessed_as_those_of_parquet(tmp_path: Path) -> None:
    rows = [{"img": row["image"], "text": row["caption"], "label": 1} for row in numbered(0, 4)]
    config = DatasetConfig(train_path=str(save(tmp_path / "saved", [arrow(rows)])))
    assert guess_columns(config) == {"image_column": "img", "caption_column": "text"}
    save(tmp_path / "saved", [arrow(rows)[:-200]])
    assert guess_columns(config) == guess_columns(replace(config, train_path=str(tmp_path / "saved" / FIRST)))


def test_a_split_that_names_its_own_folder_ends(tmp_path: Path) -> None:
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["."]}')
    with pytest.raises(DataError, match=r"dataset_dict\.json: '\.' is no file name"):
        opened(tmp_path)


def test_names_on_the_hub() -> None:
    assert hub_name("hub://org/name") == HubName("org/name")
    every = HubName("org/na-me.v2", "refs/pr/1", "the config", "test")
    assert hub_name("hub://org/na-me.v2@refs/pr/1:the config#test") == every
    assert hub_name("mnist#test") == HubName("mnist", split="test")
    for wrong in ("hub://", "hub://a/b/c", "hub://../a", "hub://a/b#", "hub://a/b#x[:3]"):
        with pytest.raises(ValueError, match="is no name of a data set; write hub://ORG/NAME"):
            hub_name(wrong)
        config = ExperimentConfig(dataset=DatasetConfig(train_path=wrong))
        with pytest.raises(ConfigError, match=r"dataset\.train_path.*is no name of a data set"):
            check_data_paths(config)
    gone = ExperimentConfig(dataset=DatasetConfig(source="hub", train_path="./gone/a/b"))
    with pytest.raises(ConfigError, match=r"gone/a/b does not exist; name a folder of save_to_disk, or write hub://"):
        check_data_paths(gone)


def in_cache(home: Path, id: str, config: str, **splits: bytes) -> None:
    """A data set that was downloaded and prepared before."""
    folder = home / "datasets" / id.replace("/", "___") / config / "0.0.0" / "0123456789abcdef"
    folder.mkdir(parents=True)
    name = id.rpartition("/")[2]
    described = {
        "dataset_name": name,
        "config_name": config,
        "version": "0.0.0",
        "splits": {
            split: {"name": split, "num_bytes": 1, "num_examples": pa.ipc.open_stream(content).read_all().num_rows}
            for split, content in splits.items()
        },
    }
    (folder / "dataset_info.json").write_text(json.dumps(described))
    for split, content in splits.items():
        (folder / f"{name}-{split}.arrow").write_bytes(content)


def in_a_process(code: str, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "HF_HOME": str(home), **environment}
    for name in ("HF_HUB_CACHE", "HF_DATASETS_CACHE"):
        env.pop(name, None)
    return subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=100, check=False
    )


def test_an_id_is_read_from_the_cache(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    in_cache(tmp_path, "org/my_name", "default", train=arrow(numbered(0, 5)), test=arrow(numbered(5, 2)))
    code = """
from impresa.config.dataset import DatasetConfig
from impresa.data.sources import open_path
for path in ("hub://org/MyName", "hub://org/MyName:default#test", "hub://org/MyName#val", "hub://org/MyName@v1"):
    try:
        found = open_path(DatasetConfig(), path)
        print(path, len(found), found[1].captions[0], found[1].label, *found[1].image.getpixel((0, 0)))
    except Exception as error:
        print(type(error).__name__, error)
"""
    ended = in_a_process(code, tmp_path, HF_HUB_OFFLINE="1")
    assert ended.stdout.splitlines() == [
        "hub://org/MyName 5 number 1 odd 1 0 7",
        "hub://org/MyName:default#test 2 number 6 even 6 0 7",
        "DataError hub://org/MyName#val: there is no split val, but train and test; name one, as hub://org/MyName#train",
        "DataError hub://org/MyName@v1: which revision the cache holds cannot be told, and HF_HUB_OFFLINE forbids "
        "asking the hub; leave it out",
    ], ended.stderr
    assert ended.stderr == ""


def test_an_id_that_is_not_at_hand_is_one_line_after_a_moment(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        started = time.monotonic()
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        code = "import time, sys; from impresa.hub import hub_is_away; start = time.monotonic()\n"
        code += "from impresa.config.dataset import DatasetConfig; from impresa.data.sources import open_path\n"
        code += "try: open_path(DatasetConfig(), 'hub://nobody/nothing')\nexcept Exception as error: print(error)\n"
        code += "print(time.monotonic() - start)"
        ended = in_a_process(code, tmp_path, HF_ENDPOINT=endpoint, HF_HUB_OFFLINE="0", NO_PROXY="127.0.0.1")
    assert time.monotonic() - started < 300
    line, seconds = ended.stdout.splitlines()
    assert line.startswith(f"hub://nobody/nothing: it is not in the cache, and {endpoint} does not answer; where there")
    assert f"`impresa data check hub://nobody/nothing` there, copy {tmp_path} here and set HF_HUB_OFFLINE=1" in line
    assert float(seconds) < 30  # the library would go on for a minute


def test_the_library_is_missed_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("impresa.data.hub_files.hub_is_away", lambda *_: None)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"dataset\.source: hub needs datasets, .*; pip install 'impresa\[hub\]'"):
        open_path(CONFIG, "hub://org/name")


def test_the_command_line_takes_both_forms(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save(tmp_path / "saved", [arrow(numbered(0, 4))])
    assert main(["data", "check", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["num_good"] == 4
    assert main(["data", "check", "hub://nobody/nothing"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
