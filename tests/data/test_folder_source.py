"""Folders of images: where captions are found, and what a bad row says."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest

from impresa.config.experiment import DatasetConfig
from impresa.data.sources import BadSample
from impresa.data.sources.folder import FolderSource
from impresa.errors import DataError
from pictures import png, write_jsonl

CONFIG = DatasetConfig()


def all_of(source: FolderSource) -> list[tuple[str, tuple[str, ...] | str]]:
    """(id, captions) of each good sample, (id, reason) of each bad one."""
    found: list[tuple[str, tuple[str, ...] | str]] = []
    for index in range(len(source)):
        try:
            sample = source[index]
            found.append((sample.id, sample.captions))
        except BadSample as bad:
            found.append((bad.id, bad.reason))
    return found


def test_jsonl_names_images_captions_and_labels(tmp_path: Path) -> None:
    folder = write_jsonl(
        tmp_path, [{"image": "3.png", "caption": " three ", "label": 3}, {"image": "1.png", "caption": "one"}]
    )
    source = FolderSource(folder, CONFIG)
    assert len(source) == 2
    sample = source[0]
    assert (sample.id, sample.captions, sample.label) == ("3.png", ("three",), "3")
    assert sample.image.getpixel((0, 0)) == (3, 0, 7)
    assert source[1].label is None
    assert list(source.captions()) == ["three", "one"]


def test_captions_may_be_lists(tmp_path: Path) -> None:
    folder = write_jsonl(tmp_path, [{"image": "1.png", "caption": ["one", "", None, "uno"]}])
    assert all_of(FolderSource(folder, CONFIG)) == [("1.png", ("one", "uno"))]


def test_columns_are_those_of_the_config(tmp_path: Path) -> None:
    folder = write_jsonl(tmp_path, [{"photo": "1.png", "text": "one", "kind": "x", "caption": "no"}])
    config = DatasetConfig(image_column="photo", caption_column="text", label_column="kind")
    sample = FolderSource(folder, config)[0]
    assert (sample.captions, sample.label) == (("one",), "x")


def test_the_image_column_of_hugging_face_is_known(tmp_path: Path) -> None:
    folder = write_jsonl(tmp_path, [{"file_name": "1.png", "caption": "one"}])
    assert all_of(FolderSource(folder, CONFIG)) == [("1.png", ("one",))]


@pytest.mark.parametrize(
    ("row", "column"),
    [({"image": "1.png", "text": "one"}, "caption"), ({"picture": "1.png", "caption": "one"}, "image")],
)
def test_missing_columns_are_refused_with_those_that_are_there(
    tmp_path: Path, row: dict[str, str], column: str
) -> None:
    present = ", ".join(sorted(row))
    with pytest.raises(
        DataError, match=rf"no column '{column}' .*\(there are: {present}\); set dataset.{column}_column"
    ):
        FolderSource(write_jsonl(tmp_path, [row]), CONFIG)


def test_bad_rows_are_named_with_their_reason(tmp_path: Path) -> None:
    folder = write_jsonl(
        tmp_path,
        [
            {"image": "0.png", "caption": "good"},
            "{not json",
            "[1, 2]",
            {"image": "1.png", "caption": "  "},
            {"image": "2.png", "caption": None},
            {"image": "3.png"},
            {"image": "4.png", "caption": 7},
            {"image": "5.png", "caption": "half a character: \ud800"},
            {"caption": "no image"},
            {"image": "gone.png", "caption": "gone"},
            {"image": "empty.png", "caption": "empty"},
            {"image": "broken.png", "caption": "broken"},
            {"image": ".", "caption": "a folder"},
            {"image": "a\0b.png", "caption": "no name"},
            {"image": "https://example.org/a.png", "caption": "far away"},
            "",
            {"image": "9.png", "caption": "good too"},
        ],
    )
    (folder / "empty.png").write_bytes(b"")
    (folder / "broken.png").write_bytes(png(1, 200, 200)[:80])
    source = FolderSource(folder, CONFIG)
    found = all_of(source)
    assert found[0] == ("0.png", ("good",))
    assert found[-1] == ("9.png", ("good too",))
    ids, reasons = zip(*found[1:-1], strict=True)
    expected = (
        ("metadata.jsonl:2", "not a line of JSON"),
        ("metadata.jsonl:3", "not a JSON object"),
        ("1.png", "the caption is empty"),
        ("2.png", "the caption is empty"),
        ("3.png", "the caption is empty"),
        ("4.png", "the caption is no text but 7"),
        ("5.png", "the caption is not UTF-8"),
        ("metadata.jsonl:9", "no image path"),
        ("gone.png", "the image cannot be read (No such file"),
        ("empty.png", "the image is empty"),
        ("broken.png", "the image cannot be decoded"),
        (".", "the image cannot be read (Is a directory"),
        ("a\0b.png", "embedded null byte"),
        ("https://example.org/a.png", "the image is an address on the web"),
    )
    assert ids == tuple(id for id, _ in expected)
    for reason, (_, start) in zip(reasons, expected, strict=True):
        assert reason.startswith(start) or start in reason
    assert list(source.captions()) == ["good", "gone", "empty", "broken", "a folder", "no name", "good too"]


def test_csv_with_mark_quotes_and_lists(tmp_path: Path) -> None:
    for number in range(4):
        (tmp_path / f"{number}.png").write_bytes(png(number))
    text = 'image,caption,label\r\n0.png,"a, b",x\r\n1.png,"[""one"", ""two""]",\r\n2.png,[not json,y\r\n3.png\r\n'
    (tmp_path / "captions.csv").write_bytes(b"\xef\xbb\xbf" + text.encode() + "0.png,caf\xe9,x\n".encode("latin-1"))
    source = FolderSource(tmp_path, CONFIG)
    assert all_of(source) == [
        ("0.png", ("a, b",)),
        ("1.png", ("one", "two")),
        ("2.png", ("[not json",)),
        ("captions.csv:5", "the row does not have as many cells as the header"),
        ("0.png#2", "the caption is not UTF-8 text"),
    ]
    assert [source[i].label for i in range(3)] == ["x", None, "y"]


def test_metadata_in_subfolders_is_relative_to_itself(tmp_path: Path) -> None:
    for name in ("b", "a/deep"):
        write_jsonl(tmp_path / "data" / name, [{"image": "1.png", "caption": name}])
    write_jsonl(tmp_path / "data/.cache/x", [{"image": "1.png", "caption": "hidden"}])
    assert all_of(FolderSource(tmp_path / "data", CONFIG)) == [("a/deep/1.png", ("a/deep",)), ("b/1.png", ("b",))]


def test_one_table_of_another_name_is_used_and_several_are_refused(tmp_path: Path) -> None:
    folder = write_jsonl(tmp_path, [{"image": "1.png", "caption": "one"}], name="train.jsonl")
    assert all_of(FolderSource(folder, CONFIG)) == [("1.png", ("one",))]
    (folder / "val.csv").write_text("image,caption\n")
    with pytest.raises(DataError, match=r"several files .*\(train\.jsonl, val\.csv\); call one metadata\.jsonl"):
        FolderSource(folder, CONFIG)


def test_sidecar_texts_are_one_caption_a_line(tmp_path: Path) -> None:
    for name in ("b.PNG", "a/c.png", "a/d.png", "e.png", ".hidden.png"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(png(1))
    (tmp_path / "notes.md").write_text("no picture")
    (tmp_path / "b.txt").write_text("first\n\n second \n")
    (tmp_path / "a/c.txt").write_text("\n")
    (tmp_path / "e.txt").write_bytes(b"caf\xe9")
    assert all_of(FolderSource(tmp_path, CONFIG)) == [
        ("b.PNG", ("first", "second")),
        ("e.png", "the caption is not UTF-8 text"),
        ("a/c.png", "the caption is empty"),
        ("a/d.png", "no caption file d.txt beside the image"),
    ]


def test_rows_of_one_image_have_names_of_their_own(tmp_path: Path) -> None:
    folder = write_jsonl(tmp_path, [{"image": "1.png", "caption": text} for text in ("one", "uno", "eins")])
    assert [id for id, _ in all_of(FolderSource(folder, CONFIG))] == ["1.png", "1.png#2", "1.png#3"]


def test_names_that_are_not_unicode_can_be_listed(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    (tmp_path / name).write_bytes(png(1))
    (tmp_path / name).with_suffix(".txt").write_text("a picture")
    assert all_of(FolderSource(tmp_path, CONFIG)) == [("caf?.png", ("a picture",))]


def test_a_folder_without_samples_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no images; name a folder"):
        FolderSource(tmp_path, CONFIG)
    with pytest.raises(DataError, match="no such folder"):
        FolderSource(tmp_path / "gone", CONFIG)


def test_a_source_and_its_faults_can_be_sent_to_another_process(tmp_path: Path) -> None:
    source = FolderSource(
        write_jsonl(tmp_path, [{"image": "1.png", "caption": "one"}, {"image": "x", "caption": "y"}]), CONFIG
    )
    assert all_of(pickle.loads(pickle.dumps(source))) == all_of(source)
    bad = pickle.loads(pickle.dumps(BadSample("id", "reason")))
    assert (bad.id, bad.reason, str(bad)) == ("id", "reason", "id: reason")


def test_large_photographs_are_decoded_smaller_when_asked(tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (400, 400)).save(tmp_path / "a.jpg")
    (tmp_path / "a.txt").write_text("black")
    assert FolderSource(tmp_path, CONFIG)[0].image.size == (400, 400)
    assert FolderSource(tmp_path, CONFIG, shrink_to_px=32)[0].image.size == (100, 100)


def test_images_of_too_many_pixels_and_of_other_formats_are_bad(tmp_path: Path) -> None:
    write_jsonl(tmp_path, [{"image": f"{number}.png", "caption": "a"} for number in range(3)])
    (tmp_path / "1.png").write_bytes(png(1, 11, 10))
    (tmp_path / "2.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n")
    source = FolderSource(tmp_path, DatasetConfig(max_image_pixels=100))
    assert source[0].image.size == (8, 8)
    with pytest.raises(BadSample, match=r"1\.png: the image has too many pixels \(11 x 10\), more than dataset.max_im"):
        source[1]
    with pytest.raises(BadSample, match=r"2\.png: not an image of a known format"):
        source[2]


def test_files_of_other_formats_beside_the_images_are_no_samples(tmp_path: Path) -> None:
    for name in ("a.png", "b.eps", "c.pdf", "d.psd"):
        (tmp_path / name).write_bytes(png(0))
    (tmp_path / "a.txt").write_text("a")
    assert [id for id, _ in all_of(FolderSource(tmp_path, DatasetConfig()))] == ["a.png"]
