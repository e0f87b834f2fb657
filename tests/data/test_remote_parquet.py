"""Parquet files at an address, and those of a data set on the hub: the samples and order of files on disk."""

from __future__ import annotations

import io
import logging
import pickle
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from impresa.config import load_experiment
from impresa.config.dataset import DatasetConfig
from impresa.data.sampler import BatchSampler
from impresa.data.shards.cache import cache_folder
from impresa.data.sources import BadSample, Source, open_path, open_train_and_val
from impresa.data.sources.base import Reading, say_once
from impresa.data.sources.columns import guess_columns
from impresa.errors import ConfigError, DataError
from saved_on_disk import arrow, numbered
from sounds_on_disk import sine

CONFIG = DatasetConfig()
NAMES = ("even", "odd")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("time.sleep", lambda _: None)
    say_once.cache_clear()
    yield
    fsspec.filesystem("memory").store.clear()


def parquet(first: int, count: int, *, rows_in_group: int = 3, names: Sequence[str] = NAMES) -> bytes:
    """Rows as the `datasets` library writes them to parquet; names of labels stand in the schema, if there are some."""
    table = pa.ipc.open_stream(arrow(numbered(first, count), names=names)).read_all()
    file = io.BytesIO()
    pq.write_table(table if names else table.replace_schema_metadata(None), file, row_group_size=rows_in_group)
    return file.getvalue()


def put(folder: str, *files: bytes, name: str = "train-{:05d}.parquet") -> list[str]:
    memory = fsspec.filesystem("memory")
    for number, content in enumerate(files):
        memory.pipe(f"/{folder}/{name.format(number)}", content)
    return [f"memory://{folder}/{name.format(number)}" for number in range(len(files))]


def seen(source: Source) -> list[Any]:
    return [(s.captions, s.label, s.image and s.image.tobytes()) for s in (source[n] for n in range(len(source)))]


def copies() -> int:
    return len(list(cache_folder().glob("*.tar"))) if cache_folder().is_dir() else 0


def test_files_at_an_address_are_the_samples_of_those_on_disk(tmp_path: Any) -> None:
    contents = [parquet(0, 7), parquet(7, 5)]
    put("bucket", *contents)
    for number, content in enumerate(contents):
        (tmp_path / f"train-{number:05d}.parquet").write_bytes(content)
    there = seen(open_path(CONFIG, str(tmp_path)))
    assert len(there) == 12
    for path in ("memory://bucket/*.parquet", "memory://bucket/train-{00000..00001}.parquet"):
        found = open_path(CONFIG, path)
        assert seen(found) == there
        assert found[8].id == "train-00001.parquet:1"
    found = open_path(replace(CONFIG, source="parquet"), "memory://bucket")
    assert seen(pickle.loads(pickle.dumps(found))) == there
    assert found.origin(0) == open_path(CONFIG, "memory://bucket/*.parquet").origin(0)  # type: ignore[attr-defined]


def test_texts_are_read_without_a_copy_and_images_with_one_of_their_file() -> None:
    put("bucket", parquet(0, 7), parquet(7, 5))
    found = open_path(CONFIG, "memory://bucket/*.parquet")
    assert next(iter(found.captions())) == "number 0"
    assert len(list(found.captions())) == 24
    assert copies() == 0
    assert found[0].label == "even"
    assert copies() == 1


def test_faults_are_one_line() -> None:
    put("bucket", b"PAR1 and nothing else", name="bad.parquet")
    with pytest.raises(DataError, match=r"^memory://bucket/bad\.parquet: .*(parquet|Parquet)"):
        open_path(CONFIG, "memory://bucket/bad.parquet")
    with pytest.raises(DataError, match=r"^memory://bucket/none\.parquet: there is no such file"):
        open_path(CONFIG, "memory://bucket/none.parquet")
    fsspec.filesystem("memory").rm("/bucket/bad.parquet")
    with pytest.raises(DataError, match=r"^memory://bucket/\*\.parquet: no parquet files there"):
        open_path(CONFIG, "memory://bucket/*.parquet")
    put("bucket", parquet(0, 7))
    found = open_path(CONFIG, "memory://bucket/*.parquet")
    fsspec.filesystem("memory").rm("/bucket", recursive=True)
    with pytest.raises(BadSample, match=r"train-00000\.parquet:2: the file cannot be fetched"):
        found[2]


def test_order_reads_each_file_once_where_not_all_can_be_kept_and_goes_on_where_it_was() -> None:
    contents = [parquet(12 * n, 12, rows_in_group=4) for n in range(6)]
    put("bucket", *contents)
    room = max(map(len, contents)) * 4.5 / (1 << 30)  # two files, and as much for the next ones
    found = open_path(replace(CONFIG, shard_cache_gib=room), "memory://bucket/*.parquet")
    blocks = found.blocks()
    assert blocks is not None
    assert (blocks.lengths, blocks.files_held) == ((4,) * 18, 2)
    assert open_path(CONFIG, "memory://bucket/*.parquet").blocks() is None
    options: dict[str, Any] = {"num_samples": 72, "batch_size": 4, "seed": 3, "blocks": blocks}
    whole = [index for batch in BatchSampler(**options) for _, index in batch]
    assert sorted(whole) == list(range(72))
    assert whole != list(range(72))
    for first in range(0, 72, 24):
        window = [index // 12 for index in whole[first : first + 24]]
        assert len(set(window)) == 2
    stopped = BatchSampler(**options)
    for _ in range(7):
        stopped.advance()
    halves = BatchSampler(**{**options, "batch_size": 2}, world_size=2), BatchSampler(**options)
    for other in halves:
        other.load_state_dict(stopped.state_dict())
    assert [index for batch in halves[1] for _, index in batch] == whole[28:]
    assert [found[index].captions[0] for index in whole[:24]] == [f"number {index}" for index in whole[:24]]
    assert copies() <= 4


def test_a_part_of_the_rows_keeps_to_the_files_too() -> None:
    contents = [parquet(12 * n, 12, rows_in_group=4) for n in range(3)]
    put("bucket", *contents)
    room = max(map(len, contents)) * 2.1 / (1 << 30)
    config = replace(CONFIG, train_path="memory://bucket/*.parquet", shard_cache_gib=room, val_fraction=0.9)
    train, _ = open_train_and_val(config)
    blocks = train.blocks()
    assert blocks is not None
    assert len(blocks.files) == len(blocks.lengths) < 9
    assert sum(blocks.lengths) == len(train)


@pytest.fixture
def on_hub(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A data set `org/name` as the `datasets` library finds it on the hub."""
    datasets = pytest.importorskip("datasets")
    found: dict[str, Any] = {"name": "parquet", "files": {}, "features": None}

    def load_dataset_builder(id: str, config: str | None, revision: str | None) -> Any:
        if (id, config) != ("org/name", None):
            raise ValueError(f"{id} with {config} at {revision} is not there.\nA long story")
        config_of = SimpleNamespace(data_files=found["files"])
        return SimpleNamespace(name=found["name"], config=config_of, info=SimpleNamespace(features=found["features"]))

    monkeypatch.setattr(datasets, "load_dataset_builder", load_dataset_builder)
    monkeypatch.setattr("impresa.data.hub_files.hub_is_away", lambda *_: None)
    return found


STREAMING = replace(CONFIG, streaming=True)


def test_a_data_set_of_the_hub_is_read_file_by_file(on_hub: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    train, test = put("hub", parquet(0, 7), parquet(7, 5)), put("hub", parquet(30, 2), name="test-{}.parquet")
    on_hub["files"] = {"train": train[::-1], "test": test}
    with caplog.at_level(logging.INFO):
        found = open_path(STREAMING, "hub://org/name")
    assert "the split train is read, of train and test" in caplog.text
    assert [s[0][0] for s in seen(found)] == [f"number {n}" for n in range(12)]  # by name, whatever the library says
    assert [s[1] for s in seen(found)[:2]] == ["even", "odd"]
    assert len(open_path(STREAMING, "hub://org/name#test")) == 2
    assert len(open_path(replace(STREAMING, source="hub"), "org/name#test")) == 2
    assert guess_columns(replace(STREAMING, train_path="hub://org/name", caption_column="text")) == {
        "caption_column": "caption"
    }


def test_names_of_labels_may_stand_in_the_description_alone(on_hub: dict[str, Any]) -> None:
    import datasets

    on_hub["files"] = {"train": put("hub", parquet(0, 4, names=()))}
    assert [s[1] for s in seen(open_path(STREAMING, "hub://org/name"))] == ["0", "1", "0", "1"]
    features: Mapping[str, Any] = {"label": datasets.ClassLabel(names=["e", "o"]), "caption": datasets.Value("string")}
    on_hub["features"] = features
    assert [s[1] for s in seen(open_path(STREAMING, "hub://org/name"))] == ["e", "o", "e", "o"]


def test_sounds_and_images_are_those_of_the_map_style(on_hub: dict[str, Any], tmp_path: Any) -> None:
    import datasets

    file = io.BytesIO()
    soundfile.write(file, sine(440, 0.1), 16_000, format="WAV")
    row = {"audio": {"bytes": file.getvalue(), "path": None}, "caption": "a tone", "image": numbered(5, 1)[0]["image"]}
    whole = datasets.Dataset.from_list([row]).cast_column("image", datasets.Image())
    whole = whole.cast_column("audio", datasets.Audio(decode=False))
    whole.save_to_disk(str(tmp_path / "saved"))
    whole.to_parquet(str(tmp_path / "a.parquet"))
    on_hub["files"] = {"train": put("hub", (tmp_path / "a.parquet").read_bytes())}
    reading = Reading(audio_seconds=1.0)
    ours, theirs = (
        open_path(STREAMING, "hub://org/name", reading)[0],
        open_path(CONFIG, f"{tmp_path}/saved", reading)[0],
    )
    assert None not in (ours.audio, theirs.audio, ours.image, theirs.image)
    assert ours.audio.samples.tolist() == theirs.audio.samples.tolist()  # type: ignore[union-attr]
    assert ours.image.tobytes() == theirs.image.tobytes()  # type: ignore[union-attr]


def test_what_cannot_be_read_file_by_file_is_refused_with_the_fix(
    on_hub: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    on_hub["files"], on_hub["name"] = {"train": ["memory://hub/a.jsonl"]}, "json"
    line = r"^hub://org/name: its files are read as json, and .*; leave it out, or read tar shards by hf://datasets/org"
    with pytest.raises(DataError, match=line):
        open_path(STREAMING, "hub://org/name")
    with pytest.raises(DataError, match=r"^hub://org/other: org/other with None at None is not there; check the name$"):
        open_path(STREAMING, "hub://org/other")
    monkeypatch.setattr("impresa.data.hub_files._why_away", lambda *_: "it does not answer")
    with pytest.raises(DataError, match=r"dataset\.streaming fetches files from the hub, and it does not answer"):
        open_path(STREAMING, "hub://org/name")
    with pytest.raises(
        ConfigError, match=r"dataset\.streaming: reads data sets of the hub, and no data path names one"
    ):
        load_experiment("shapes", ["dataset.streaming=true", "dataset.train_path=memory://a.parquet"])
