"""Which source a path opens, and how a source is divided into training and validation data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from impresa.config.dataset import DatasetConfig, ShapesConfig
from impresa.data.sources import Source, open_path, open_source, open_train_and_val
from impresa.data.sources.folder import FolderSource
from impresa.data.sources.parquet import ParquetSource
from impresa.data.sources.shapes import ShapesSource
from impresa.data.sources.subset import Subset, split_by_image
from impresa.errors import DataError
from pictures import numbered, png, write_jsonl
from shards_on_disk import write_shards

SHAPES = DatasetConfig(image_size=16, shapes=ShapesConfig(num_train=9, num_val=5, num_test=4))


def write_parquet(path: Path, count: int = 4) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"image": [png(n) for n in range(count)], "caption": [f"number {n}" for n in range(count)]}
    pq.write_table(pa.table(content), path, row_group_size=4)
    return path


def captions(source: Source) -> list[str]:
    return [source[i].captions[0] for i in range(len(source))]


def test_shapes_have_splits_of_their_own() -> None:
    train, val, test = (open_source(SHAPES, split) for split in ("train", "val", "test"))
    assert [len(source) for source in (train, val, test)] == [9, 5, 4]
    assert train[0].image.size == (16, 16)
    assert captions(open_path(SHAPES, "shapes")) == captions(test)
    assert [captions(source) for source in open_train_and_val(SHAPES)] == [captions(train), captions(val)]


def test_the_kind_is_told_by_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_jsonl(tmp_path / "folder", numbered(3))
    file = write_parquet(tmp_path / "many" / "deep" / "b.parquet")
    write_parquet(tmp_path / "many" / "a.parquet", count=6)
    assert isinstance(open_path(SHAPES, "shapes"), ShapesSource)
    assert isinstance(open_path(SHAPES, str(folder)), FolderSource)
    for path, count in ((file, 4), (tmp_path / "many", 10), (tmp_path / "many" / "*.parquet", 6)):
        source = open_path(SHAPES, str(path))
        assert isinstance(source, ParquetSource)
        assert len(source) == count
    assert len(open_path(SHAPES, str(tmp_path / "many" / "**" / "*.parquet"))) == 10
    assert len(open_path(SHAPES, str(tmp_path / "many" / "{deep,a.parquet}"))) == 10
    with pytest.raises(DataError, match=r"gone\.parquet: no parquet files there"):
        open_path(SHAPES, str(tmp_path / "many" / "{a,gone}.parquet"))
    for name in "xy":
        write_shards(tmp_path / name, 1)
    assert len(open_path(SHAPES, str(tmp_path / "{x,y}"))) == 10
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(open_path(SHAPES, "~/folder")) == 3


def test_the_kind_can_be_said(tmp_path: Path) -> None:
    both = write_jsonl(tmp_path, numbered(3))
    write_parquet(tmp_path / "a.parquet")
    assert isinstance(open_path(SHAPES, str(both)), ParquetSource)
    assert isinstance(open_path(replace(SHAPES, source="folder"), str(both)), FolderSource)
    assert isinstance(open_path(replace(SHAPES, source="shapes"), "shapes"), ShapesSource)


@pytest.mark.parametrize(
    ("source", "path", "message"),
    [
        ("auto", "gone", r"gone: no such file or folder; name an existing folder or file"),
        ("auto", " ", r"the path is empty"),
        ("auto", "gone.parquet", r"gone\.parquet: no parquet files there"),
        ("auto", "*.parquet", r"\*\.parquet: no parquet files there"),
        ("auto", "a{0..9999999}", r"braces stand for more than 1000000 names; name fewer files"),
        ("auto", __file__, r"unknown kind of data; name a folder"),
        ("parquet", "shapes", r"shapes: not data of dataset\.source=parquet; set dataset\.source=auto"),
        ("shapes", "data", r"data: not data of dataset\.source=shapes"),
        ("folder", "gone", r"gone: no such folder"),
        ("hub", "./x/y/z", r"\./x/y/z: does not exist; name a folder of save_to_disk, or write hub://ORG/NAME"),
    ],
)
def test_other_paths_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, path: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=message):
        open_path(replace(SHAPES, source=source), path)


def test_a_path_for_each_split_is_read_as_it_is(tmp_path: Path) -> None:
    folders = {
        split: write_jsonl(tmp_path / split, numbered(n)) for split, n in (("train", 5), ("val", 3), ("test", 2))
    }
    config = DatasetConfig(**{f"{split}_path": str(folder) for split, folder in folders.items()})
    assert [len(open_source(config, split)) for split in folders] == [5, 3, 2]
    assert len(open_source(replace(config, test_path=None), "test")) == 3
    mixed = replace(config, train_path="shapes", test_path=None, shapes=SHAPES.shapes, image_size=16)
    assert [len(open_source(mixed, split)) for split in folders] == [9, 3, 4]


def test_without_a_path_validation_is_part_of_the_training_images(tmp_path: Path) -> None:
    config = DatasetConfig(train_path=str(write_jsonl(tmp_path, numbered(40))), val_fraction=0.2)
    train, val = open_train_and_val(config)
    assert sorted(captions(train) + captions(val)) == sorted(row["caption"] for row in numbered(40))
    images = [{source[i].id.partition("#")[0] for i in range(len(source))} for source in (train, val)]
    assert [len(names) for names in images] == [8, 2]
    assert not images[0] & images[1]
    assert captions(val) == captions(open_source(config, "val")) == captions(open_source(config, "test"))
    assert captions(train) == captions(open_source(config, "train")) == list(train.captions())


def test_the_division_depends_on_the_images_not_on_order_or_place(tmp_path: Path) -> None:
    rows = numbered(10)
    held_out = []
    for number, order in enumerate((rows, rows[::-1])):
        config = DatasetConfig(train_path=str(write_jsonl(tmp_path / str(number), order)), val_fraction=0.3)
        held_out.append(set(captions(open_source(config, "val"))))
    assert held_out[0] == held_out[1]
    fewer = DatasetConfig(train_path=str(write_jsonl(tmp_path / "fewer", rows[:9])), val_fraction=0.3)
    assert len(held_out[0] & set(captions(open_source(fewer, "val")))) >= 2


@pytest.mark.parametrize(("fraction", "held_out"), [(0.001, 1), (0.5, 5), (0.999, 9)])
def test_both_parts_have_an_image(tmp_path: Path, fraction: float, held_out: int) -> None:
    train, val = split_by_image(FolderSource(write_jsonl(tmp_path, numbered(10)), SHAPES), fraction)
    assert (len(train), len(val)) == (10 - held_out, held_out)


def test_a_division_that_cannot_be_is_refused(tmp_path: Path) -> None:
    folder = write_jsonl(tmp_path, [{"image": "1.png", "caption": text} for text in "abc"])
    with pytest.raises(DataError, match=r"a single image .* set dataset\.val_path"):
        open_source(DatasetConfig(train_path=str(folder)), "train")
    with pytest.raises(DataError, match=r"dataset\.val_fraction: 0 leaves no validation data"):
        open_source(DatasetConfig(train_path=str(folder), val_fraction=0.0), "val")


def test_bad_rows_belong_to_a_part_and_to_no_captions(tmp_path: Path) -> None:
    rows = [*numbered(6), {"image": "7.png", "caption": ""}, {"image": "8.png", "caption": "x"}]
    train, val = split_by_image(FolderSource(write_jsonl(tmp_path, rows), SHAPES), 0.5)
    assert len(train) + len(val) == 8
    assert sorted([*train.captions(), *val.captions()]) == sorted([row["caption"] for row in rows if row["caption"]])


def test_parts_of_parquet_keep_its_row_groups_together(tmp_path: Path) -> None:
    source = ParquetSource(write_parquet(tmp_path / "a.parquet", 14), SHAPES, max_bytes_kept=1)
    part = Subset(source, np.array([0, 0, 0, 0, 1, 1, 0, 0, 1, 1, 1, 1, 0, 1], bool))
    assert part.blocks().lengths == (2, 4, 1)
    assert [sample.captions[0] for sample in (part[0], part[2], part[6])] == ["number 4", "number 8", "number 13"]
    assert list(part.captions()) == captions(part)
    assert Subset(ParquetSource(tmp_path / "a.parquet", SHAPES), np.ones(14, bool)).blocks() is None


def test_only_training_images_are_decoded_smaller(tmp_path: Path) -> None:
    from PIL import Image

    for number in range(4):
        Image.new("RGB", (256, 256), (number, 0, 0)).save(tmp_path / f"{number}.jpg")
        (tmp_path / f"{number}.txt").write_text("red")
    config = DatasetConfig(train_path=str(tmp_path), val_path=str(tmp_path), image_size=32)
    sizes = [open_source(config, split)[0].image.size for split in ("train", "val", "test")]
    assert sizes == [(64, 64), (256, 256), (256, 256)]


def test_the_home_of_a_user_that_is_not_known_is_a_missing_path() -> None:
    for path in ("~nobody-at-all/data", "~nobody-at-all/*.parquet"):
        with pytest.raises(DataError, match=r"^~nobody-at-all/.*no (such file|parquet files)"):
            open_path(DatasetConfig(), path)


def test_a_folder_may_be_called_like_a_pattern(tmp_path: Path) -> None:
    folder = write_jsonl(tmp_path / "[photos]", [{"image": "1.png", "caption": "a"}])
    assert len(open_path(DatasetConfig(), str(folder))) == 1
