"""Tables of addresses in all formats: the columns that nobody has named are found, or doubt is an error."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from impresa.data.fetch.table import Columns, Table, open_addresses
from impresa.errors import DataError

Rows = Sequence[dict[str, Any]]
URL = "https://a.b/x.png"


def written(folder: Path, kind: str, rows: Rows) -> str:
    path = folder / f"table.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(list(rows)), path)
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif kind == "json":
        path.write_text(json.dumps(rows))
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if kind == "tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return str(path)


def columns(folder: Path, **cells: Any) -> Columns:
    return open_addresses(written(folder, "parquet", [cells] * 3)).columns


def cells_of(table: Table) -> list[dict[str, Any]]:
    return [json.loads(row.cells) for row in table.rows()]


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "json", "csv", "tsv"])
def test_all_formats_give_the_same(tmp_path: Path, kind: str) -> None:
    rows = [{"link": f"{URL}?{n}", "text": f'a "thing", number {n}', "label": f"{n}"} for n in range(600)]
    table = open_addresses(written(tmp_path, kind, rows))
    assert table.columns == Columns("link", "text")
    assert [row.url for row in table.rows()] == [row["link"] for row in rows]
    assert cells_of(table)[7] == {"link": f"{URL}?7", "caption": 'a "thing", number 7', "label": "7"}


def test_pixmo_as_published(tmp_path: Path) -> None:
    sha256 = "ab" * 32
    assert columns(tmp_path, image_url=URL, caption="a long one", transcripts=["a", "b"]) == Columns(
        "image_url", "caption"
    )
    asked = columns(tmp_path, image_url=URL, image_sha256=sha256, question="what?", answer="a cat")
    assert asked == Columns("image_url", None, "image_sha256")
    said = columns(tmp_path, image_url=URL, question="[USER] what? [ASSISTANT]", answer="x", messages=["what?", "x"])
    assert said == Columns("image_url", None)


def test_other_columns_of_addresses_and_texts(tmp_path: Path) -> None:
    laion = {"URL": URL, "TEXT": "a red thing", "LANGUAGE": "nolang", "WIDTH": 3, "hash": 99, "similarity": 0.3}
    assert columns(tmp_path, **laion) == Columns("URL", "TEXT")
    assert columns(tmp_path, image_url=URL, page_url=URL, caption="x") == Columns("image_url", "caption")
    assert columns(tmp_path, url=URL, label=3) == Columns("url", None)
    with pytest.raises(
        DataError, match=r"addresses could be any of coco_url and flickr_url; name it with --url-column"
    ):
        columns(tmp_path, coco_url=URL, flickr_url=URL, caption="x")
    with pytest.raises(DataError, match=r"captions could be any of text and title; name it with --caption-column"):
        columns(tmp_path, url=URL, text="a thing", title="a title")
    with pytest.raises(DataError, match=r"addresses is not plain to see; name it with --url-column"):
        columns(tmp_path, image="x.png", caption="x")


def test_named_columns(tmp_path: Path) -> None:
    path = written(
        tmp_path, "csv", [{"a_url": URL, "b_url": URL, "caption": "short", "long": "a long one", "h": "AB" * 32}]
    )
    table = open_addresses(path, url_column="b_url", caption_column="long", sha256_column="h")
    (row,) = table.rows()
    assert (row.url, row.sha256, json.loads(row.cells)["caption"]) == (URL, "ab" * 32, "a long one")
    with pytest.raises(DataError, match=r"no column 'c_url' \(there are: a_url, b_url, .*mend --url-column"):
        open_addresses(path, url_column="c_url")


def test_what_cannot_be_read_is_a_row_without_an_address(tmp_path: Path) -> None:
    path = tmp_path / "table.jsonl"
    rows = [{"image_url": URL, "caption": "x"}, {"image_url": [URL]}, {"image_url": [URL, URL]}, {"image_url": 3}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "{broken\n[1]\n\n")
    assert [row.url for row in open_addresses(str(path)).rows()] == [URL, URL, None, None, None, None]


def test_pictures_and_bad_text_in_a_parquet_table(tmp_path: Path) -> None:
    texts = pa.array([b"good", b"\xff\xfe", None, b"fine"], pa.binary()).view(pa.string())
    urls = pa.array([f"{URL}?{n}" for n in range(4)])
    table = pa.table({"image_url": urls, "caption": texts, "image": [{"bytes": b"x", "path": "p"}] * 4})
    pq.write_table(table, tmp_path / "table.parquet")
    rows = list(open_addresses(str(tmp_path / "table.parquet")).rows())
    assert [row.url for row in rows] == [f"{URL}?0", None, f"{URL}?2", f"{URL}?3"]
    assert json.loads(rows[2].cells) == {"image_url": f"{URL}?2"}


def test_what_is_no_table(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"")
    for path in (tmp_path, tmp_path / "x.png", tmp_path / "gone.csv", "shapes", "https://a.b/x.parquet", ""):
        with pytest.raises(DataError):
            open_addresses(str(path))
    (tmp_path / "table.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match="no readable parquet"):
        open_addresses(str(tmp_path / "table.parquet"))
    (tmp_path / "empty.csv").write_text("image_url,caption\n")
    (tmp_path / "conceptual.tsv").write_text(f"a red thing\t{URL}?1\na blue thing\t{URL}?2\n")
    with pytest.raises(DataError, match=r"its first line is no header, as https://.* is in it"):
        open_addresses(str(tmp_path / "conceptual.tsv"))
    with pytest.raises(DataError, match=r"empty\.csv: no rows that can be read"):
        open_addresses(str(tmp_path / "empty.csv"))


def test_several_files(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.csv").write_text(f"image_url,caption\n{URL}?{name},x\n")
    table = open_addresses(str(tmp_path / "{a,b}.csv"))
    assert [row.url for row in table.rows()] == [f"{URL}?a", f"{URL}?b"]
    with pytest.raises(DataError, match=r"c\.csv: there is no such file"):
        open_addresses(str(tmp_path / "{a,c}.csv"))
    before = table.digest()
    (tmp_path / "b.csv").write_text(f"image_url,caption\n{URL}?c,x\n")
    assert table.digest() != before
