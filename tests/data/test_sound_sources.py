"""Sources that read sound: what may be missing, what is bad, and that nothing changes where no sound is asked for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from impresa.config.dataset import DatasetConfig
from impresa.data.sample import Sample
from impresa.data.sources import BadSample, Reading, Source, open_path, open_source, open_train_and_val
from impresa.data.sources.folder import FolderSource
from impresa.data.sources.parquet import ParquetSource
from impresa.errors import DataError
from pictures import png, write_jsonl
from sounds_on_disk import sine, wav, write_wavs

CONFIG = DatasetConfig(val_fraction=0.3)
BYTES_AND_PATH = pa.struct({"bytes": pa.binary(), "path": pa.string()})


def parts(sample: Sample) -> tuple[bool, bool, bool]:
    """Whether the sample has an image, captions and a sound."""
    return sample.image is not None, bool(sample.captions), sample.audio is not None


def read_all(source: Source) -> list[tuple[bool, bool, bool] | str]:
    """What each sample has, or the reason why it is bad."""
    found: list[tuple[bool, bool, bool] | str] = []
    for index in range(len(source)):
        try:
            found.append(parts(source[index]))
        except BadSample as bad:
            found.append(bad.reason)
    return found


def jsonl(folder: Path, *rows: dict[str, Any]) -> Path:
    write_jsonl(folder, rows)
    write_wavs(folder, 3)
    return folder


def parquet(folder: Path, rows: list[dict[str, Any]], schema: pa.Schema) -> Path:
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema), folder / "data.parquet", row_group_size=2)
    return folder / "data.parquet"


ROWS: list[dict[str, Any]] = [
    {"image": "0.png", "caption": "all", "audio": "0.wav"},
    {"image": "1.png", "caption": ["no sound"], "audio": None},
    {"image": "", "caption": "no image", "audio": "1.wav"},
    {"image": "2.png", "caption": None, "audio": "2.wav"},
]
PARTS = [(True, True, True), (True, True, False), (False, True, True), (True, False, True)]


def test_a_folder_s_samples_may_lack_one_of_three(tmp_path: Path) -> None:
    source = FolderSource(jsonl(tmp_path, *ROWS), CONFIG, Reading(0.25))
    assert read_all(source) == PARTS
    assert [source[i].id for i in range(4)] == ["0.png", "1.png", "1.wav", "2.png"]
    clip = source[2].audio
    assert clip.rate_hz == 16_000
    torch.testing.assert_close(clip.samples, sine(300)[:4_000], atol=1e-4, rtol=0)
    assert list(source.captions()) == ["all", "no sound", "no image"]
    assert list(source.image_keys()) == ["0.png", "1.png", "1.wav", "2.png"]


def test_without_sound_the_same_folder_is_read_as_before(tmp_path: Path) -> None:
    source = FolderSource(jsonl(tmp_path, *ROWS), CONFIG)
    assert read_all(source) == [(True, True, False)] * 2 + ["no image path", "the caption is empty"]


def test_bad_rows_of_a_folder_with_sound(tmp_path: Path) -> None:
    (tmp_path / "noise.wav").write_bytes(b"this is no sound")
    rows = [
        {"image": "0.png", "caption": "x", "audio": "noise.wav"},
        {"image": "0.png", "caption": "x", "audio": "none.wav"},
        {"image": "0.png", "caption": "x", "audio": "https://example.org/a.wav"},
        {"image": "0.png", "caption": "x", "audio": 3},
        {"image": "0.png", "caption": " ", "audio": ""},
        {"image": "none.png", "caption": "x", "audio": "0.wav"},
        {"image": "0.png", "caption": 7, "audio": "0.wav"},
    ]
    expected = ["the sound cannot be decoded", "the sound cannot be read", "the sound is an address on the web"]
    expected += ["no sound path", "has only one of image, caption and sound", "the image cannot be read"]
    expected += ["the caption is no text but 7"]
    reasons = read_all(FolderSource(jsonl(tmp_path, *rows), CONFIG, Reading(1.0)))
    assert [str(reason)[: len(start)] for reason, start in zip(reasons, expected, strict=True)] == expected


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"image": "0.png", "caption": "x"}, r"no column 'audio' for the sound .*caption, image.*; set dataset.audio_"),
        ({"audio": "0.wav", "label": "x"}, r"no column for the image or the caption .*audio, label.*; set dataset.im"),
    ],
)
def test_columns_that_sound_needs(tmp_path: Path, row: dict[str, str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        FolderSource(jsonl(tmp_path / "folder", row), CONFIG, Reading(1.0))
    file = parquet(tmp_path / "parquet", [row], pa.schema(dict.fromkeys(row, pa.string())))
    with pytest.raises(DataError, match=r"data\.parquet: .*; set dataset\."):
        ParquetSource(file, CONFIG, Reading(1.0))


def test_sound_files_lie_beside_images_and_captions(tmp_path: Path) -> None:
    for name in ("both.png", "silent.png", "bare.png", "loud.png"):
        (tmp_path / name).write_bytes(png(1))
    for name in ("both.wav", "alone.wav", "loud.WAV"):
        (tmp_path / name).write_bytes(wav(300))
    for name in ("both", "silent", "alone"):
        (tmp_path / f"{name}.txt").write_text(f"{name}\n")
    source = FolderSource(tmp_path, CONFIG, Reading(1.0))
    assert dict(zip(source.image_keys(), read_all(source), strict=True)) == {
        "alone.wav": (False, True, True),
        "bare.png": "has only one of image, caption and sound",
        "both.png": (True, True, True),
        "loud.png": (True, False, True),
        "silent.png": (True, True, False),
    }
    assert len(FolderSource(tmp_path, CONFIG)) == 4


@pytest.mark.parametrize("kind", [pa.binary(), pa.string(), BYTES_AND_PATH])
def test_parquet_holds_sounds_as_bytes_paths_or_structs(tmp_path: Path, kind: pa.DataType) -> None:
    def cell(number: int) -> Any:
        data = wav(200 + 100 * number)
        if kind == pa.string():
            (tmp_path / f"{number}.wav").write_bytes(data)
            return f"{number}.wav"
        return data if kind == pa.binary() else {"bytes": data, "path": "x.wav"}

    rows = [
        {"image": png(0), "caption": "all", "audio": cell(0)},
        {"image": png(1), "caption": "no sound", "audio": None},
        {"image": None, "caption": "no image", "audio": cell(1)},
        {"image": png(2), "caption": "", "audio": cell(2)},
    ]
    schema = pa.schema({"image": pa.binary(), "caption": pa.string(), "audio": kind})
    file = parquet(tmp_path, rows, schema)
    source = ParquetSource(file, CONFIG, Reading(0.25))
    assert read_all(source) == PARTS
    torch.testing.assert_close(source[2].audio.samples, sine(300)[:4_000], atol=1e-4, rtol=0)
    assert len(set(source.image_keys())) == 4
    assert list(source.captions()) == ["all", "no sound", "no image"]
    assert read_all(ParquetSource(file, CONFIG)) == [
        *((True, True, False) for _ in range(2)),
        "there is no image",
        "the caption is empty",
    ]


def test_bad_rows_of_parquet_with_sound(tmp_path: Path) -> None:
    rows = [
        {"image": png(0), "caption": "x", "audio": b"this is no sound"},
        {"image": None, "caption": "x", "audio": None},
        {"image": b"no picture", "caption": "x", "audio": wav(300)},
    ]
    schema = pa.schema({"image": pa.binary(), "caption": pa.string(), "audio": pa.binary()})
    reasons = read_all(ParquetSource(parquet(tmp_path, rows, schema), CONFIG, Reading(1.0)))
    expected = ["the sound cannot be decoded", "has only one of image, caption and sound", "not an image"]
    assert [str(reason)[: len(start)] for reason, start in zip(reasons, expected, strict=True)] == expected


def test_sounds_with_captions_alone_are_data_too(tmp_path: Path) -> None:
    rows = [{"caption": f"tone {i // 2}", "audio": wav(200 + 100 * (i // 2))} for i in range(8)]
    file = parquet(tmp_path, rows, pa.schema({"caption": pa.string(), "audio": pa.binary()}))
    train, val = open_train_and_val(DatasetConfig(train_path=str(file), val_fraction=0.5), Reading(1.0))
    assert set(read_all(train)) | set(read_all(val)) == {(False, True, True)}
    assert len(train) == len(val) == 4
    assert not set(train.captions()) & set(val.captions())  # equal sounds stay together


def test_every_way_to_open_data_reads_sound(tmp_path: Path) -> None:
    rows = [{"image": f"{i % 10}.png", "caption": f"number {i}", "audio": "0.wav"} for i in range(10)]
    config = DatasetConfig(train_path=str(jsonl(tmp_path, *rows)), val_fraction=0.3)
    for split in ("train", "val", "test"):
        assert open_source(config, split, Reading(0.1))[0].audio is not None
        assert open_source(config, split)[0].audio is None
    assert open_path(config, str(tmp_path), Reading(0.1))[0].audio.samples.shape == (1_600,)
    shapes = DatasetConfig(image_size=16)
    for split in ("train", "val", "test"):
        assert open_source(shapes, split, Reading(0.1))[0].audio is not None
        assert open_source(shapes, split)[0].audio is None


def test_sounds_may_be_in_a_column_of_another_name(tmp_path: Path) -> None:
    rows = [{key.replace("audio", "noise"): value for key, value in row.items()} for row in ROWS]
    config = DatasetConfig(audio_column="noise")
    assert read_all(FolderSource(jsonl(tmp_path / "folder", *rows), config, Reading(1.0))) == PARTS
    sounds = [{"caption": "tone", "noise": wav(300)}]
    file = parquet(tmp_path / "parquet", sounds, pa.schema({"caption": pa.string(), "noise": pa.binary()}))
    assert read_all(ParquetSource(file, config, Reading(1.0))) == [(False, True, True)]


def test_sounds_that_are_no_files_or_lead_out_are_bad_samples(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    sounds = ("pipe.wav", "../out.wav", "large.wav", "nan", "0.wav")
    source_folder = jsonl(folder, *({"image": "0.png", "caption": "x", "audio": name} for name in sounds))
    (tmp_path / "out.wav").write_bytes(wav(300))
    (folder / "0.wav").write_bytes(wav(300))
    os.mkfifo(folder / "pipe.wav")
    with (folder / "large.wav").open("wb") as file:
        file.truncate(300 << 20)
    found = read_all(FolderSource(source_folder, CONFIG, Reading(1.0)))
    assert found == [
        "the sound is no regular file but a named pipe",
        "the sound lies outside the folder of the data (../out.wav); move it there, or set dataset.allow_outside=true",
        "the sound has 300 MiB, more than dataset.max_file_mib=256",
        (True, True, False),
        (True, True, True),
    ]
