"""Tables as text files: separators, encodings, Flickr's captions, and what a file that is no table is taken for."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest

from impresa.config.dataset import DatasetConfig
from impresa.data.sources import BadSample, open_path
from impresa.errors import DataError
from pictures import write_jsonl

CONFIG = DatasetConfig()
WORDS = "café, a dog; it's big"


def read(path: Path, config: DatasetConfig = CONFIG) -> dict[str, tuple[str, ...] | str]:
    """Captions, or the reason why there are none, by the name of the sample."""
    source, found = open_path(config, str(path)), {}
    for index in range(len(source)):
        try:
            sample = source[index]
            found[sample.id] = sample.captions
        except BadSample as bad:
            found[bad.id] = bad.reason
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures without a table."""
    (write_jsonl(tmp_path / "data", []) / "metadata.jsonl").unlink()
    return tmp_path / "data"


@pytest.mark.parametrize("name", ["captions.csv", "metadata.tsv", "captions.txt", "mine.tsv"])
@pytest.mark.parametrize("separator", [",", "\t", ";", "|", ", "])
def test_any_separator_is_found(folder: Path, name: str, separator: str) -> None:
    cells = [["image", "n", "caption"], ["0.png", "1", f'"{WORDS}"'], ["1.png", "2", '"say ""hi"""']]
    (folder / name).write_text("\n" + "\r\n".join(map(separator.join, cells)), encoding="utf-8", newline="")
    assert read(folder) == read(folder / name) == {"0.png": (WORDS,), "1.png": ('say "hi"',)}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl", "0.txt"])
def test_any_marked_encoding_is_read(folder: Path, name: str, encoding: str) -> None:
    texts = {
        "metadata.csv": f"image\tcaption\n0.png\t{WORDS}\n",
        "metadata.jsonl": f'{{"image": "0.png", "caption": "{WORDS}"}}\n',
        "0.txt": f"{WORDS}\n",
    }
    (folder / name).write_text(texts[name], encoding=encoding)
    assert read(folder)["0.png"] == (WORDS,)


def test_a_quote_that_is_never_closed_swallows_no_rows(folder: Path) -> None:
    whole = '0.png,"two\nlines, ""one"" row"\n1.png,"to the end\n2.png,x\n3.png,y\n'
    (folder / "metadata.csv").write_text(f"image,caption\n{whole}")
    with pytest.raises(DataError, match=r"csv: line 6 is no csv \(a quote in the row from line 4 on is never closed\)"):
        open_path(CONFIG, str(folder))
    (folder / "metadata.csv").write_text('image,caption\n0.png,"two\nlines, ""one"" row"\n1.png,"x\ny"')
    assert read(folder) == {"0.png": ('two\nlines, "one" row',), "1.png": ("x\ny",)}


def test_a_column_that_is_there_twice_is_refused_where_it_is_used(folder: Path) -> None:
    (folder / "metadata.csv").write_text("image,caption,caption\n0.png,a,b\n")
    with pytest.raises(DataError, match="has several columns 'caption'; rename all but one"):
        open_path(CONFIG, str(folder))
    (folder / "metadata.csv").write_text("image,caption,n,n\n0.png,a,1,2\n")
    assert read(folder) == {"0.png": ("a",)}


def test_the_line_with_which_excel_is_told_the_separator_is_no_header(folder: Path) -> None:
    (folder / "metadata.csv").write_text("\ufeffsep=;\r\nimage;caption\r\n0.png;a, b\r\n1.png\r\n")
    short = "the row does not have as many cells as the header"
    assert read(folder) == {"0.png": ("a, b",), "metadata.csv:4": short}


@pytest.mark.parametrize("text", ["", "image,caption\n"])
def test_a_table_without_rows_is_named(folder: Path, text: str) -> None:
    (folder / "metadata.csv").write_text(text)
    with pytest.raises(DataError, match=r"metadata\.csv: no rows; write one for each image"):
        open_path(CONFIG, str(folder))


def test_a_missing_column_is_named_with_the_separator_that_was_found(folder: Path) -> None:
    (folder / "a.csv").write_text("picture;text\n0.png;x\n")
    keys = r"dataset\.image_column and dataset\.caption_column"
    columns = rf"\(there are: picture, text\); set {keys}; the columns are separated by semicolons"
    with pytest.raises(DataError, match=columns):
        read(folder)
    assert read(folder, DatasetConfig(image_column="picture", caption_column="text")) == {"0.png": ("x",)}
    (folder / "a.csv").write_text("picture;text\n")
    with pytest.raises(DataError, match=columns):
        read(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("image,légende\n".encode("latin-1"), r"is not UTF-8 \(as Latin-1 its header reads 'image,légende'\)"),
        ("image,caption\n0.png,x\n".encode("utf-16-le"), "looks like UTF-16 without a byte order mark"),
        ("image,caption\n0.png,x\n".encode("utf-16")[:-1], "is damaged UTF-16"),
        (b"PK\x03\x04rest", "is a zip archive or an Excel workbook by its content"),
        (gzip.compress(b"image,caption\n", mtime=0), "is gzip by its content"),
    ],
)
def test_files_that_are_no_text_are_named_as_what_they_are(folder: Path, content: bytes, message: str) -> None:
    (folder / "metadata.csv").write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read(folder)
    assert str(caught.value).startswith(f"{folder / 'metadata.csv'}: ")
    assert len(caught.value.lines) == 1


def test_latin_1_costs_the_rows_that_have_it(folder: Path) -> None:
    (folder / "metadata.csv").write_bytes("image,caption,note\n0.png,café,x\n1.png,dog,é\n".encode("latin-1"))
    reason = "the caption is not UTF-8 text; as Latin-1 it reads 'café': save the file as UTF-8"
    assert read(folder) == {"0.png": reason, "1.png": ("dog",)}


def test_flickr_s_captions_are_read_with_and_without_a_header(folder: Path) -> None:
    (folder / "results_20130124.token").write_text('0.png#0\tA dog .\n0.png#1\tA cat .\n\nno tab\n1.png#0\tOwl, "x"\n')
    assert read(folder) == {
        "0.png": ("A dog .",),
        "0.png#2": ("A cat .",),
        "results_20130124.token:4": "no image, tab and caption",
        "1.png": ('Owl, "x"',),
    }
    (folder / "results.csv").write_text(
        "image_name| comment_number| comment\n0.png| 0| Two men, a dog .\n0.png| 4 A man\n"
    )
    config = DatasetConfig(image_column="image_name", caption_column="comment")
    assert read(folder / "results.csv", config) == {
        "0.png": ("Two men, a dog .",),
        "results.csv:3": "the row does not have as many cells as the header",
    }


def test_a_text_file_called_captions_may_belong_to_an_image(folder: Path) -> None:
    (folder / "0.png").rename(folder / "captions.png")
    (folder / "captions.txt").write_text("one\ntwo\n")
    assert read(folder)["captions.png"] == ("one", "two")


@pytest.mark.parametrize("line", ['{"image": ' + "[" * 100_000, '{"image": ' + "9" * 5000 + "}"])
def test_json_without_end_is_a_bad_row(folder: Path, line: str) -> None:
    (folder / "metadata.jsonl").write_text(f'{line}\n{{"image": "0.png", "caption": "x"}}\n')
    found = read(folder)
    assert found.pop("0.png") == ("x",)
    assert "not a line of JSON" in str(found["metadata.jsonl:1"])


def test_a_table_that_is_no_file_or_has_an_endless_line_is_refused(folder: Path) -> None:
    os.mkfifo(folder / "metadata.csv")
    with pytest.raises(DataError, match=r"metadata\.csv: is no regular file but a named pipe"):
        read(folder)
    (folder / "metadata.csv").unlink()
    for name in ("metadata.csv", "metadata.jsonl"):
        (folder / name).write_bytes(b"image,caption\n" + b"x" * (2 << 20))
        with pytest.raises(DataError, match=r"line 2 is longer than dataset\.max_file_mib=1"):
            read(folder, DatasetConfig(max_file_mib=1))
        (folder / name).unlink()
