"""Columns of a table that can only be images and texts are found; doubt is an error that names the key."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from impresa.config.dataset import DatasetConfig
from impresa.data.sources.columns import guess_columns
from impresa.errors import DataError
from pictures import png

Rows = list[dict[str, Any]]
BOTH = {"image_column": "picture", "caption_column": "text"}


def parquet(folder: Path, rows: Rows) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), folder / "data.parquet")
    return folder / "data.parquet"


def table(folder: Path, rows: Rows) -> Path:
    with (folder / "photos.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder


def guessed(path: Path, caption_column: str = "caption") -> dict[str, str]:
    return guess_columns(DatasetConfig(train_path=str(path), caption_column=caption_column))


def rows(**more: Any) -> Rows:
    return [{"picture": f"{i}.JPG", "text": f"a red thing {i}", "number": i, **more} for i in range(3)]


def test_names_of_pictures_and_texts_in_a_csv(tmp_path: Path) -> None:
    assert guessed(table(tmp_path, rows())) == BOTH
    assert guessed(table(tmp_path, rows(split="train", url="https://x.org/a b"))) == BOTH  # one column of sentences


@pytest.mark.parametrize("picture", [png(1), {"bytes": png(1), "path": None}, {"bytes": None, "path": "a.png"}])
def test_pictures_in_parquet(tmp_path: Path, picture: Any) -> None:
    assert guessed(parquet(tmp_path, rows(picture=picture))) == BOTH
    assert guessed(parquet(tmp_path, rows(picture=picture, text=["one", "a red one"], sound=b"RIFF....WAVE"))) == BOTH


def test_single_words_are_texts_where_there_is_nothing_else(tmp_path: Path) -> None:
    assert guessed(table(tmp_path, rows(text="mug"))) == BOTH


def test_configured_names_are_kept(tmp_path: Path) -> None:
    usual = [{"file_name": "a.png", "caption": "x", "title": "a title"}]
    assert guessed(table(tmp_path, usual)) == {}
    assert guessed(table(tmp_path, rows(title="a title")), caption_column="title") == {"image_column": "picture"}


def test_doubt_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"the column of texts could be any of text and title; .*caption_column"):
        guessed(table(tmp_path, rows(title="a title")))
    with pytest.raises(DataError, match=r"the column of images could be any of mask and picture; .*image_column"):
        guessed(table(tmp_path, rows(mask="m.png")))
    with pytest.raises(DataError, match=r"the column of images is not plain to see; .*image_column"):
        guessed(table(tmp_path, [{"id": "a1", "text": "a red thing"}]))


def test_pictures_with_texts_beside_them_are_no_table(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(1))
    (tmp_path / "a.txt").write_text("a red thing")
    assert guessed(tmp_path) == {}
