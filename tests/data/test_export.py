"""The embedded data as files: the same pictures and captions, all or nothing."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from impresa.config.dataset import DatasetConfig, ShapesConfig
from impresa.data.export import export_shapes
from impresa.data.sources import Reading, open_path
from impresa.data.sources.shapes import ShapesSource
from impresa.errors import DataError

SHAPES = ShapesConfig(num_train=5, num_val=3, num_test=2, seed=4)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("file_format", ["folder", "parquet"])
def test_what_is_read_is_what_the_embedded_data_hold(tmp_path: Path, file_format: str) -> None:
    folders = export_shapes(SHAPES, tmp_path / "data", image_size_px=24, file_format=file_format)
    assert folders == {split: tmp_path / "data" / split for split in ("train", "val", "test")}
    assert names(tmp_path / "data") == {"train", "val", "test"}
    for split, folder in folders.items():
        embedded = ShapesSource(SHAPES, split, 24, Reading(dialogues=True))
        exported = open_path(DatasetConfig(), str(folder), Reading(dialogues=True))
        assert len(exported) == len(embedded)
        for index in range(len(embedded)):
            assert exported[index].image.tobytes() == embedded[index].image.tobytes()
            assert exported[index].captions == embedded[index].captions
            assert exported[index].dialogues == embedded[index].dialogues


def test_the_scene_stands_beside_the_caption(tmp_path: Path) -> None:
    folder = export_shapes(SHAPES, tmp_path / "a", image_size_px=16)["train"]
    table = export_shapes(SHAPES, tmp_path / "b", image_size_px=16, file_format="parquet")["train"]
    lines = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    rows = pq.read_table(table).to_pylist()
    assert [line["scene"] for line in lines] == [json.loads(row["scene"]) for row in rows]
    for column in ("question", "answer", "kind"):
        assert [line[column] for line in lines] == [row[column] for row in rows]
    thing = lines[0]["scene"]["objects"][0]
    assert f"{thing['size']} {thing['colour']} {thing['shape']}" in lines[0]["caption"]


def test_a_folder_that_is_not_empty_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(DataError, match="is not empty; name another folder, or add --force"):
        export_shapes(SHAPES, tmp_path, image_size_px=16)
    assert names(tmp_path) == {"mine.txt"}
    with pytest.raises(DataError, match="is a file"):
        export_shapes(SHAPES, tmp_path / "mine.txt", image_size_px=16)


def test_an_empty_folder_will_do(tmp_path: Path) -> None:
    (tmp_path / ".keep").touch()
    export_shapes(SHAPES, tmp_path, image_size_px=16)
    assert names(tmp_path) == {".keep", "train", "val", "test"}


def test_force_replaces_the_splits_and_nothing_else(tmp_path: Path) -> None:
    export_shapes(ShapesConfig(num_train=9, num_val=1, num_test=1), tmp_path, image_size_px=16)
    (tmp_path / "mine.txt").write_text("mine")
    (tmp_path / "train" / "old.png").touch()
    export_shapes(SHAPES, tmp_path, image_size_px=16, force=True)
    assert names(tmp_path) == {"mine.txt", "train", "val", "test"}
    assert names(tmp_path / "train") == {"images", "metadata.jsonl"}
    assert len(names(tmp_path / "train" / "images")) == 5


@pytest.mark.parametrize("exists", [True, False])
def test_an_interrupted_export_leaves_everything_as_it_was(tmp_path: Path, exists: bool) -> None:
    folder = tmp_path / "data"
    if exists:
        export_shapes(ShapesConfig(num_train=9, num_val=1, num_test=1), folder, image_size_px=16)

    def interrupt(indices: Iterable[int], split: str) -> Iterator[int]:
        for index in indices:
            if split == "val" and index == 2:
                raise KeyboardInterrupt
            yield index

    with pytest.raises(KeyboardInterrupt):
        export_shapes(SHAPES, folder, image_size_px=16, force=True, track=interrupt)
    assert folder.exists() is exists
    if exists:
        assert names(folder) == {"train", "val", "test"}
        assert len(names(folder / "train" / "images")) == 9


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"cannot be written \(Not a directory\)"):
        export_shapes(SHAPES, tmp_path / "file" / "data", image_size_px=16)
