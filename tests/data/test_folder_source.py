"""Folders of images: where captions are found, and what a bad row says."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from impresa.config.dataset import DatasetConfig
from impresa.data.dialogue import ask
from impresa.data.sources import BadSample, Reading, open_path
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
        (r"a\u0000b.png", "embedded null byte"),
        ("https://example.org/a.png", "the image is an address on the web"),
    )
    assert ids == tuple(id for id, _ in expected)
    for reason, (_, start) in zip(reasons, expected, strict=True):
        assert reason.startswith(start) or start in reason
    assert list(source.captions()) == ["good", "gone", "empty", "broken", "a folder", "no name", "good too"]


def test_paths_as_windows_writes_them_are_told(tmp_path: Path) -> None:
    reason = all_of(FolderSource(write_jsonl(tmp_path, [{"image": r"photos\1.png", "caption": "x"}]), CONFIG))[0][1]
    assert str(reason).endswith(r"write / in place of \ in its path")


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
        ("0.png#2", "the caption is not UTF-8 text; as Latin-1 it reads 'café': save the file as UTF-8"),
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
        ("e.png", "the caption is not UTF-8 text; as Latin-1 it reads 'café': save the file as UTF-8"),
        ("a/c.png", "the caption is empty"),
        ("a/d.png", "no caption file beside the image (d.txt)"),
    ]


def test_rows_of_one_image_have_names_of_their_own(tmp_path: Path) -> None:
    folder = write_jsonl(tmp_path, [{"image": "1.png", "caption": text} for text in ("one", "uno", "eins")])
    assert [id for id, _ in all_of(FolderSource(folder, CONFIG))] == ["1.png", "1.png#2", "1.png#3"]


def test_names_that_are_not_unicode_can_be_listed(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    (tmp_path / name).write_bytes(png(1))
    (tmp_path / name).with_suffix(".txt").write_text("a picture")
    assert all_of(FolderSource(tmp_path, CONFIG)) == [(r"caf\udce9.png", ("a picture",))]


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
    assert FolderSource(tmp_path, CONFIG, shrink_to_px=64)[0].image.size == (100, 100)


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


def test_a_printed_list_in_csv_is_a_list_and_never_text(tmp_path: Path) -> None:
    write_jsonl(tmp_path, [], name="unused.txt")
    (tmp_path / "metadata.csv").write_text(
        "image,caption\n0.png,\"['a dog', 'a cat']\"\n1.png,['a dog' 'a cat']\n2.png,\"['a dog', 'a\"\n"
    )
    assert all_of(FolderSource(tmp_path, CONFIG)) == [
        ("0.png", ("a dog", "a cat")),
        ("1.png", ("a dog", "a cat")),
        ("2.png", "\"['a dog', 'a\" begins as a list and is none, neither in JSON nor in Python"),
    ]


def test_printed_lists_of_questions_are_lists(tmp_path: Path) -> None:
    write_jsonl(tmp_path, [], name="unused.txt")
    (tmp_path / "metadata.csv").write_text(
        "image,question,answer\n0.png,\"['one?', 'two?']\",\"['1', '2']\"\n1.png,\"['one?\",x\n"
    )
    source = FolderSource(tmp_path, CONFIG, Reading(dialogues=True))
    assert source[0].dialogues == (ask("one?", "1"), ask("two?", "2"))
    with pytest.raises(BadSample, match="begins as a list and is none"):
        source[1]


def test_hidden_tables_and_those_of_linked_folders(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "store", [{"image": "1.png", "caption": "one"}])
    folder = tmp_path / "data"
    (folder / ".ipynb_checkpoints").mkdir(parents=True)
    for name in ("._metadata.csv", ".ipynb_checkpoints/metadata.csv", "._x.jsonl"):
        (folder / name).write_text("no table")
    (folder / "linked").symlink_to(tmp_path / "store")
    assert all_of(FolderSource(folder, CONFIG)) == [("linked/1.png", ("one",))]


def test_paths_that_lead_out_of_the_folder_are_bad_rows_unless_they_may(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "real", [])
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "real" / "loop").symlink_to(tmp_path / "real")
    (tmp_path / "out.png").write_bytes(png(11))
    inside = ("0.png", "x/../1.png", str(tmp_path / "link/2.png"), str(tmp_path / "real/3.png"), "loop/../4.png")
    outside = ("../out.png", str(tmp_path / "out.png"), "x/../../out.png", "loop/../../out.png")
    rows = [{"image": name, "caption": "x"} for name in (*inside, *outside)]
    write_jsonl(tmp_path / "real", rows)
    found = all_of(FolderSource(tmp_path / "link", CONFIG))
    assert found[:5] == [(f"{number}.png", ("x",)) for number in range(5)]
    for (id, reason), name in zip(found[5:], outside, strict=True):
        assert id.startswith("metadata.jsonl:")
        fix = "move it there, or set dataset.allow_outside=true"
        assert reason == f"the image lies outside the folder of the data ({name}); {fix}"
    config = DatasetConfig(allow_outside=True)
    found = all_of(FolderSource(tmp_path / "link", config))
    assert found[5:] == [(f"{tmp_path}/out.png{n}", ("x",)) for n in ("", "#2", "#3", "#4")]


def test_an_image_root_is_a_folder_that_images_may_be_in_and_no_other(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "coco", [])
    (tmp_path / "out.png").write_bytes(png(11))
    rows = [{"image": name, "caption": "x"} for name in ("1.png", str(tmp_path / "coco/2.png"), "../out.png")]
    write_jsonl(tmp_path / "table", rows)
    source = FolderSource(tmp_path / "table", DatasetConfig(image_root=str(tmp_path / "coco")))
    found = all_of(source)
    assert found[:2] == [("1.png", ("x",)), ("2.png", ("x",))]
    assert "the image lies outside the folder of the data (../out.png)" in found[2][1]
    assert list(source.image_keys())[:2] == ["1.png", "2.png"]


def test_a_printed_list_of_one_image_is_that_image(tmp_path: Path) -> None:
    write_jsonl(tmp_path, [], name="unused.txt")
    rows = ("\"['0.png']\"", '"[""1.png""]"', "\"['2.png', '3.png']\"")
    (tmp_path / "metadata.csv").write_text("images,caption\n" + "".join(f"{row},x\n" for row in rows))
    found = all_of(FolderSource(tmp_path, CONFIG))
    assert found[:2] == [("0.png", ("x",)), ("1.png", ("x",))]
    assert "several images (2)" in found[2][1]


def test_files_that_are_no_files_or_too_large_are_bad_rows(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    with (tmp_path / "huge.png").open("wb") as file:
        file.truncate(1 << 40)
    names = ("pipe.png", "zero.png", "huge.png", "0.png")
    source = FolderSource(write_jsonl(tmp_path, [{"image": name, "caption": "x"} for name in names]), CONFIG)
    assert all_of(source) == [
        ("pipe.png", "the image is no regular file but a named pipe"),
        ("zero.png", "the image is no regular file but a device"),
        ("huge.png", "the image has 1048576 MiB, more than dataset.max_file_mib=256"),
        ("0.png", ("x",)),
    ]


def test_img2dataset_s_files_are_images_with_captions(tmp_path: Path) -> None:
    shard = tmp_path / "00000"
    shard.mkdir()
    for number in range(3):
        (shard / f"{number:09}.png").write_bytes(png(number))
        (shard / f"{number:09}.json").write_text(json.dumps({"caption": f"json {number}", "status": "success"}))
    (shard / "000000000.txt").write_text("text 0")
    (shard / "000000002.json").write_text("[" * 100_000)
    (shard / "000000003.json").write_text('{"status": "failed_to_download"}')
    (tmp_path / "00000_stats.json").write_text("{}")
    pq.write_table(pa.table({"url": ["u"], "caption": ["text 0"]}), tmp_path / "00000.parquet")
    source = open_path(CONFIG, str(tmp_path))
    assert isinstance(source, FolderSource)
    found = all_of(source)
    assert found[:2] == [("00000/000000000.png", ("text 0",)), ("00000/000000001.png", ("json 1",))]
    assert found[2][0] == "00000/000000002.png"
    assert "000000002.json: values are nested too deeply" in str(found[2][1])


def class_folders(folder: Path) -> Path:
    for number, name in enumerate(("cat/1", "cat/2", "dog/1", "dog/puppy/2")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.png").write_bytes(png(number))
    return folder


def test_folders_are_classes_where_no_image_has_a_caption(tmp_path: Path) -> None:
    folder = class_folders(tmp_path)
    source = FolderSource(folder, CONFIG, Reading(labels=True))
    assert [(source[i].id, source[i].label, source[i].captions) for i in range(4)] == [
        ("cat/1.png", "cat", ()),
        ("cat/2.png", "cat", ()),
        ("dog/1.png", "dog", ()),
        ("dog/puppy/2.png", "puppy", ()),
    ]
    (folder / "0.png").write_bytes(png(0))
    with pytest.raises(BadSample, match=r"0\.png: has no label"):
        FolderSource(folder, CONFIG, Reading(labels=True))[0]
    (folder / "cat" / "1.txt").write_text("a cat")
    source = FolderSource(folder, CONFIG, Reading(labels=True))
    assert source[1].label is None
    with pytest.raises(BadSample, match=r"no caption file beside the image \(0\.txt"):
        source[0]


def test_labels_alone_train_only_as_captions(tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "folders")
    table = write_jsonl(tmp_path / "table", [{"image": "0.png", "label": 1}, {"image": "1.png", "label": 0}])
    for path in (folder, table):
        fix = r"labels alone are for .impresa eval RUN --data PATH., or dataset\.caption_column=label trains on the"
        with pytest.raises(DataError, match=fix) as caught:
            FolderSource(path, CONFIG)
        assert len(caught.value.lines) == 1
    config = DatasetConfig(caption_column="label", class_names=("cat", "dog"))
    assert all_of(FolderSource(table, config)) == [("0.png", ("dog",)), ("1.png", ("cat",))]
    assert all_of(FolderSource(folder, DatasetConfig(caption_column="label")))[0] == ("cat/1.png", ("cat",))


@pytest.mark.parametrize("captions", [{}, {"caption": None}, {"caption": " "}])
def test_a_table_without_captions_is_evaluated_by_its_labels(tmp_path: Path, captions: dict[str, str | None]) -> None:
    rows = [{"image": "0.png", "label": "cat"}, {"image": "1.png", "label": None}, {"image": "2.png", "label": "dog"}]
    source = FolderSource(write_jsonl(tmp_path, [row | captions for row in rows]), CONFIG, Reading(labels=True))
    assert [source[i].label for i in (0, 2)] == ["cat", "dog"]
    with pytest.raises(BadSample, match="has no label"):
        source[1]


def test_captions_are_needed_where_there_are_some(tmp_path: Path) -> None:
    rows = [{"image": f"{i}.png", "label": "cat", "caption": text} for i, text in enumerate(("", "x"))]
    source = FolderSource(write_jsonl(tmp_path, rows), CONFIG, Reading(labels=True))
    assert all_of(source) == [("0.png", "the caption is empty"), ("1.png", ("x",))]


def test_images_without_captions_or_classes_are_refused(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(png(0))
    for reading in (Reading(), Reading(labels=True), Reading(dialogues=True)):
        with pytest.raises(DataError, match=r"no image has a caption: there is neither metadata\.jsonl nor"):
            FolderSource(tmp_path, CONFIG, reading)
