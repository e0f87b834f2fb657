"""Parquet: bytes, paths and structs, many files and row groups, bounded memory, damaged files."""

from __future__ import annotations

import multiprocessing
import os
import pickle
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from impresa.config.dataset import DatasetConfig
from impresa.data.sources import BadSample, Blocks, Reading, open_path, parquet
from impresa.data.sources.parquet import ParquetSource
from impresa.errors import DataError
from pictures import png

CONFIG = DatasetConfig()


def table(numbers: range = range(10), **columns: Any) -> pa.Table:
    basic = {"image": [png(n) for n in numbers], "caption": [f"number {n}" for n in numbers]}
    return pa.table({**basic, **columns})


def write(path: Path, content: pa.Table, rows_per_group: int = 4) -> Path:
    pq.write_table(content, path, row_group_size=rows_per_group)
    return path


def test_a_footer_that_contradicts_itself_ends_no_process(tmp_path: Path) -> None:
    file = write(tmp_path / "a.parquet", table(image=[{"bytes": png(n), "path": None} for n in range(10)]))
    pieces = file.read_bytes().split(b"\x15\x0c")  # a type, for one, of bytes

    def read() -> None:
        for place in range(1, len(pieces)):
            file.write_bytes(b"\x15\x0c".join(pieces[:place]) + b"\x15\x0e" + b"\x15\x0c".join(pieces[place:]))
            with suppress(DataError):
                source = ParquetSource(file, CONFIG)
                for number in range(len(source)):
                    with suppress(BadSample):
                        source[number]

    child = multiprocessing.get_context("fork").Process(target=read)
    child.start()
    child.join()
    assert len(pieces) > 5
    assert child.exitcode == 0


def test_captions_in_lists_of_lists_are_those_of_other_kinds_of_data(tmp_path: Path) -> None:
    captions = [[["one", "two"], ["three"]], [[]], None, [["four"]]]
    source = ParquetSource(write(tmp_path / "a.parquet", table(range(4), caption=captions)), CONFIG)
    assert [*source.captions_by_sample()] == [("one", "two", "three"), (), (), ("four",)]


def test_rows_come_in_the_order_of_files_and_rows(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", table(range(7)))
    write(tmp_path / "b.parquet", table(range(7, 10)))
    source = ParquetSource(tmp_path, CONFIG)
    assert len(source) == 10
    samples = [source[i] for i in (9, 0, 6, 7, 3, 4)]
    assert [sample.captions for sample in samples] == [(f"number {n}",) for n in (9, 0, 6, 7, 3, 4)]
    assert [sample.image.getpixel((0, 0))[0] for sample in samples] == [9, 0, 6, 7, 3, 4]
    assert [sample.id for sample in samples[:2]] == ["b.parquet:2", "a.parquet:0"]
    assert list(source.captions()) == [f"number {n}" for n in range(10)]
    for index in (10, -1):
        with pytest.raises(IndexError):
            source[index]


def test_the_same_file_name_in_two_folders_gives_different_names(tmp_path: Path) -> None:
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "part.parquet", table())
    source = ParquetSource(tmp_path, CONFIG)
    assert len({source[i].id for i in range(20)}) == 20


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
def test_bytes_of_any_kind(tmp_path: Path, kind: pa.DataType) -> None:
    content = table(image=pa.array([png(n) for n in range(10)], kind))
    assert ParquetSource(write(tmp_path / "a.parquet", content), CONFIG)[5].image.getpixel((0, 0)) == (5, 0, 7)


def test_paths_and_the_struct_of_hugging_face(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(png(42))
    paths = table(range(1), image=["pictures/a.png"])
    structs = table(range(2), image=[{"bytes": png(43), "path": None}, {"bytes": None, "path": "pictures/a.png"}])
    source = ParquetSource(write(tmp_path / "a.parquet", paths), CONFIG)
    assert source[0].image.getpixel((0, 0))[0] == 42
    source = ParquetSource(write(tmp_path / "b.parquet", structs), CONFIG)
    assert [source[i].image.getpixel((0, 0))[0] for i in range(2)] == [43, 42]


def test_a_column_of_file_names_stands_in_for_an_image_column_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(42))
    named = table(range(1), file_name=["a.png"])
    assert (
        ParquetSource(write(tmp_path / "a.parquet", named.drop(["image"])), CONFIG)[0].image.getpixel((0, 0))[0] == 42
    )
    assert ParquetSource(write(tmp_path / "a.parquet", named), CONFIG)[0].image.getpixel((0, 0))[0] == 0
    empty = pa.table({"image": pa.array([None], pa.binary()), "caption": ["x"], "file_name": ["a.png"]})
    with pytest.raises(BadSample, match="there is no image"):
        ParquetSource(write(tmp_path / "a.parquet", empty), CONFIG)[0]


def test_columns_lists_and_labels(tmp_path: Path) -> None:
    content = pa.table(
        {"jpg": [png(0), png(1)], "texts": [["a", "b"], ["c"]], "digit": [7, None], "image": [1, 2], "x": ["", ""]}
    )
    config = DatasetConfig(image_column="jpg", caption_column="texts", label_column="digit")
    source = ParquetSource(write(tmp_path / "a.parquet", content), config)
    assert [(source[i].captions, source[i].label) for i in range(2)] == [(("a", "b"), "7"), (("c",), None)]
    assert list(source.captions()) == ["a", "b", "c"]


def test_bad_rows_are_named_with_their_reason(tmp_path: Path) -> None:
    images = [png(0), None, b"", b"junk", png(4), png(5), png(6, 300, 300)[:90]]
    captions = ["good", "no image", "empty", "junk", "", None, "torn"]
    source = ParquetSource(write(tmp_path / "a.parquet", pa.table({"image": images, "caption": captions})), CONFIG)
    assert source[0].captions == ("good",)
    reasons = [
        "there is no image",
        "there is no image",
        "not an image",
        "caption is empty",
        "caption is empty",
        "decoded",
    ]
    for row, reason in enumerate(reasons, start=1):
        with pytest.raises(BadSample, match=reason) as caught:
            source[row]
        assert caught.value.id == f"a.parquet:{row}"
    assert list(source.captions()) == ["good", "no image", "empty", "junk", "torn"]


def test_paths_that_lead_nowhere_are_bad_rows(tmp_path: Path) -> None:
    content = table(range(2), image=["gone.png", "http://example.org/a.png"])
    source = ParquetSource(write(tmp_path / "a.parquet", content), CONFIG)
    for row, reason in enumerate(("No such file", "address on the web")):
        with pytest.raises(BadSample, match=reason):
            source[row]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            table(text=["x"] * 10).drop(["caption"]),
            r"no column 'caption' \(there are: image, text\); set dataset.caption",
        ),
        (table().drop(["image"]), r"no column 'image' \(there are: caption\); set dataset.image_column"),
        (table(image=list(range(10))), r"column 'image' is int64; it must hold bytes or paths"),
        (table(caption=list(range(10))), r"column 'caption' is int64; it must hold text"),
        (table(range(0), image=pa.array([], pa.binary()), caption=pa.array([], pa.string())), "no rows"),
    ],
)
def test_unfit_tables_are_refused(tmp_path: Path, content: pa.Table, message: str) -> None:
    with pytest.raises(DataError, match=message):
        ParquetSource(write(tmp_path / "a.parquet", content), CONFIG)


def test_files_that_are_no_parquet_are_refused(tmp_path: Path) -> None:
    for data in (b"", b"not parquet" * 10, write(tmp_path / "whole.parquet", table()).read_bytes()[:-40]):
        path = tmp_path / "broken.parquet"
        path.write_bytes(data)
        with pytest.raises(DataError, match=r"broken\.parquet: no readable parquet file"):
            ParquetSource(path, CONFIG)


def test_a_damaged_row_group_costs_its_rows_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", table())
    start = pq.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
    data = bytearray(path.read_bytes())
    data[start : start + 40] = b"\xff" * 40
    path.write_bytes(data)
    source = ParquetSource(path, CONFIG)
    for row in range(10):
        if 4 <= row < 8:
            with pytest.raises(BadSample):
                source[row]
        else:
            assert source[row].captions == (f"number {row}",)


def test_memory_is_bounded_and_the_last_row_groups_are_kept(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", table(range(40)))
    group_bytes = pq.ParquetFile(path).metadata.row_group(0)
    size = sum(group_bytes.column(i).total_uncompressed_size for i in range(group_bytes.num_columns))
    source = ParquetSource(path, CONFIG, max_bytes_kept=int(2.5 * size))
    order = [*range(40), *range(40)]
    assert [source[i].captions[0] for i in order] == [f"number {i}" for i in order]
    assert len(source._kept) == 2
    for row in (0, 4, 0, 8):
        source[row]
    assert set(source._kept) == {0, 2}
    assert source.blocks() == Blocks(lengths=(4,) * 10, num_held=2)
    assert ParquetSource(path, CONFIG).blocks() is None
    tiny = ParquetSource(path, CONFIG, max_bytes_kept=1)
    assert [tiny[i].captions[0] for i in (0, 39)] == ["number 0", "number 39"]
    assert len(tiny._kept) == 1
    assert tiny.blocks().num_held == 1


def test_each_row_group_is_read_once_while_it_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = ParquetSource(write(tmp_path / "a.parquet", table()), CONFIG)
    reads = []
    read = pq.ParquetFile.iter_batches
    monkeypatch.setattr(
        pq.ParquetFile,
        "iter_batches",
        lambda self, n, i, *a, **options: reads.extend(i) or read(self, n, i, *a, **options),
    )
    for row in (0, 9, 1, 8, 5, 0):
        source[row]
    assert sorted(reads) == [0, 1, 2]


def test_too_large_row_groups_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "a.parquet", table())
    ParquetSource(path, CONFIG)
    assert not caplog.messages
    ParquetSource(path, CONFIG, max_bytes_kept=100)
    assert "smaller row groups need less memory" in caplog.text


def test_keys_tell_images_apart_by_content_or_by_path(tmp_path: Path) -> None:
    by_bytes = ParquetSource(write(tmp_path / "a.parquet", table(range(3), image=[png(1), png(2), png(1)])), CONFIG)
    keys = list(by_bytes.image_keys())
    assert keys[0] == keys[2] != keys[1]
    content = table(range(3), image=["a.png", "b.png", "./a.png"])
    by_path = ParquetSource(write(tmp_path / "b.parquet", content), CONFIG)
    assert list(by_path.image_keys()) == ["a.png", "b.png", "a.png"]


def test_a_source_can_be_sent_to_another_process(tmp_path: Path) -> None:
    source = ParquetSource(write(tmp_path / "a.parquet", table(range(10))), CONFIG)
    fresh = len(pickle.dumps(source))
    before = source[3]
    assert len(pickle.dumps(source)) == fresh
    after = pickle.loads(pickle.dumps(source))[3]
    assert (after.id, after.captions, after.image.tobytes()) == (before.id, before.captions, before.image.tobytes())


def damaged_text(*texts: bytes) -> pa.Array:
    """A column that says it is UTF-8 text, whatever it holds."""
    return pa.Array.from_buffers(pa.string(), len(texts), pa.array(texts, pa.binary()).buffers())


def test_damaged_text_costs_its_row_alone(tmp_path: Path) -> None:
    captions = damaged_text(b"one", b"caf\xe9", b"three", b"four")
    source = ParquetSource(write(tmp_path / "a.parquet", table(range(4), caption=captions)), CONFIG)
    assert [source[i].captions for i in (0, 2, 3)] == [("one",), ("three",), ("four",)]
    with pytest.raises(BadSample, match=r"a\.parquet:1: column 'caption' is not UTF-8 text"):
        source[1]
    assert list(source.captions()) == ["one", "three", "four"]
    assert len(set(source.image_keys())) == 4


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.list_(pa.binary()), pa.list_(pa.string(), 1)])
def test_captions_may_be_bytes_and_lists_of_any_kind(tmp_path: Path, kind: pa.DataType) -> None:
    texts = ["café".encode(), b"caf\xe9"] if "binary" in str(kind) else ["café", "x"]
    captions = pa.array([[text] for text in texts] if "list" in str(kind) else texts, kind)
    source = ParquetSource(write(tmp_path / "a.parquet", table(range(2), caption=captions)), CONFIG)
    assert source[0].captions == ("café",)
    if "binary" in str(kind):
        with pytest.raises(BadSample, match="the caption is not UTF-8 text; as Latin-1 it reads 'café'"):
            source[1]


def test_arrow_s_errors_and_a_lack_of_memory_are_bad_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = ParquetSource(write(tmp_path / "a.parquet", table()), CONFIG)
    for error in (pa.ArrowNotImplementedError("new"), pa.ArrowMemoryError("full"), MemoryError("full")):

        def fail(self: pq.ParquetFile, *_: object, error: Exception = error, **__: object) -> None:
            raise error

        monkeypatch.setattr(pq.ParquetFile, "iter_batches", fail)
        with pytest.raises(BadSample, match=rf"a\.parquet:3: the row cannot be read \({error}\)"):
            source[3]


def test_too_large_row_groups_are_refused_by_the_footer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("impresa.data.sources.parquet._MOST_BYTES_IN_GROUP", 400)
    with pytest.raises(DataError, match=r"a\.parquet: row group 0 takes .* at most 2 GiB .*row_group_size=256"):
        ParquetSource(write(tmp_path / "a.parquet", table()), CONFIG)
    assert len(ParquetSource(write(tmp_path / "a.parquet", table(), rows_per_group=1), CONFIG)) == 10


def test_a_damaged_schema_is_one_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", table(range(2), oddname=["x", "y"]))
    path.write_bytes(path.read_bytes().replace(b"oddname", b"odd\xff\xfeme"))
    with pytest.raises(DataError, match=r"a\.parquet: no readable parquet file \(.*utf-8") as caught:
        ParquetSource(path, CONFIG)
    assert len(caught.value.lines) == 1


def test_a_pipe_is_no_parquet_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.parquet")
    with pytest.raises(DataError, match="is no regular file but a named pipe"):
        ParquetSource(tmp_path / "a.parquet", CONFIG)


def test_hidden_files_are_left_out_and_linked_folders_read(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "store").mkdir()
    write(tmp_path / "data" / "._a.parquet", table())
    write(tmp_path / "store" / "a.parquet", table(range(3)))
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "store")
    source = open_path(CONFIG, str(tmp_path / "data"))
    assert (len(source), source[0].id) == (3, "a.parquet:0")


def test_paths_outside_the_folder_of_the_files_are_bad_rows(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "out.png").write_bytes(png(9))
    path = write(tmp_path / "data" / "a.parquet", table(range(1), image=["../out.png"]))
    with pytest.raises(BadSample, match=r"the image lies outside the folder of the data \(\.\./out\.png"):
        ParquetSource(path, CONFIG)[0]
    assert ParquetSource(path, DatasetConfig(allow_outside=True))[0].image.getpixel((0, 0))[0] == 9
    (tmp_path / "data" / "out.png").write_bytes(png(8))
    (tmp_path / "data" / "deep").mkdir()
    path.rename(tmp_path / "data" / "deep" / "a.parquet")
    assert ParquetSource(tmp_path / "data", CONFIG)[0].image.getpixel((0, 0))[0] == 8


def test_images_as_bytes_have_the_limit_of_files(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", table(range(2), image=[b"x" * (2 << 20), png(1)]))
    source = ParquetSource(path, DatasetConfig(max_file_mib=1))
    with pytest.raises(BadSample, match=r"the image has 2 MiB, more than dataset\.max_file_mib=1"):
        source[0]
    assert source[1].captions == ("number 1",)


def test_a_table_of_labels_is_evaluated_and_not_trained_on(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", pa.table({"image": [png(0), png(1)], "label": ["cat", "dog"]}))
    assert [
        sample.label for sample in map(ParquetSource(path, CONFIG, Reading(labels=True)).__getitem__, range(2))
    ] == [
        "cat",
        "dog",
    ]
    with pytest.raises(DataError, match=r"no column 'caption' .*; labels alone are for .impresa eval"):
        ParquetSource(path, CONFIG)
    assert list(ParquetSource(path, DatasetConfig(caption_column="label")).captions()) == ["cat", "dog"]


def test_values_that_are_repeated_without_end_are_bad_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "_MOST_BYTES_IN_GROUP", 1 << 20)
    zeros = pa.DictionaryArray.from_arrays(pa.array([0] * 1_000, pa.int32()), pa.array([png(1) + bytes(100_000)]))
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": zeros, "caption": ["a"] * 1_000}), path, store_schema=False)
    source = ParquetSource(path, CONFIG)
    before = pa.total_allocated_bytes()
    for _ in range(2):
        with pytest.raises(BadSample, match="its row group is decoded to more than 1 MiB"):
            source[999]
    assert pa.total_allocated_bytes() - before < 4 << 20
    assert list(source.captions()) == ["a"] * 1_000


def test_rows_without_a_value_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "_MOST_BYTES_IN_GROUP", 1 << 20)
    nothing = pa.table({"image": pa.nulls(20_000, pa.binary()), "caption": pa.nulls(20_000, pa.string())})
    with pytest.raises(DataError, match="row group 0 takes"):
        ParquetSource(write(tmp_path / "a.parquet", nothing, 20_000), CONFIG)


def test_endless_lists_are_bad_rows(tmp_path: Path) -> None:
    captions = pa.array([["a"], ["b"] * 20_000], pa.list_(pa.string()))
    source = ParquetSource(write(tmp_path / "a.parquet", table(range(2), caption=captions)), CONFIG)
    assert source[0].captions == ("a",)
    with pytest.raises(BadSample, match="'caption' is a list of 20000 items, more than 10000"):
        source[1]
    assert list(source.captions()) == ["a"]
