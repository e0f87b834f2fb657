"""Packed data give the same samples, equal images stay together, and a pack is whole or not there."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import tarfile
from collections.abc import Callable
from importlib import import_module
from io import BytesIO
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data_to_pack import folder_of, pack, parquet_of, picture, saved_of, shards_of, sidecars_of
from data_to_pack import rows as rows_of
from full_disk import files_of_at_most
from impresa.cli.main import main
from impresa.config.dataset import DatasetConfig
from impresa.data.sample import Sample
from impresa.data.shards.places import INDEX_SUFFIX
from impresa.data.sources import BadSample, Reading, Source, open_path
from impresa.run_dir.lock import locked
from pictures import photo
from shards_on_disk import tar_of

FORMATS = ("webdataset", "parquet")
CONFIG = DatasetConfig(image_size=64)
READINGS = (Reading(labels=True), Reading(1.0, dialogues=True))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def said(path: str, reading: Reading) -> list[Any]:
    source = open_path(CONFIG, path, reading)
    found = []
    for number in range(len(source)):
        try:
            found.append(_plain(source[number]))
        except BadSample as fault:
            found.append(("bad", fault.reason))
    return sorted(found, key=repr)


def _plain(sample: Sample) -> tuple[Any, ...]:
    assert sample.image is not None
    sound = None if sample.audio is None else (sample.audio.rate_hz, sample.audio.samples.tolist())
    return sample.captions, sample.label, sample.dialogues, sound, sample.image_key


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize("make", [folder_of, sidecars_of, parquet_of, saved_of, shards_of])
def test_the_packed_samples_are_the_same(tmp_path: Path, make: Any, file_format: str) -> None:
    source = make(tmp_path / "data")
    assert pack(source, tmp_path / "out", "--format", file_format, "--split", "0.6,0.2,0.2") == 0
    asked = {folder_of: READINGS, sidecars_of: READINGS[:1]}.get(make, (READINGS[0], Reading(dialogues=True)))
    for reading in asked:
        assert said(str(tmp_path / "out"), reading) == said(source, reading)
    files = [path for path in (tmp_path / "out").rglob("*.*") if path.suffix in (".tar", ".parquet")]
    assert len(files) >= 3
    least = {"webdataset": 20 << 10, "parquet": 60_000}  # parquet's own headers are large beside such files
    assert max(path.stat().st_size for path in files) <= least[file_format]
    again = tmp_path / "again"
    other = FORMATS[file_format == FORMATS[0]]
    assert pack(str(tmp_path / "out"), again, "--format", other, "--split", "1") == 0
    assert said(str(again), READINGS[0]) == said(source, READINGS[0])


@pytest.mark.parametrize("file_format", FORMATS)
def test_several_images_of_a_row_are_packed_in_their_order(tmp_path: Path, file_format: str) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for number in range(10):
        (folder / f"{number}.png").write_bytes(picture(number, "JPEG" if number % 2 else "PNG"))
    lists = [[0], [2, 1], [3, 2], [*range(4, 10), *range(4, 9)], []]
    lines = [
        {"images": [f"{n}.png" for n in numbers], "question": "how many?", "answer": len(numbers)} for numbers in lists
    ]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    reading = Reading(dialogues=True, max_images=11)
    words = ("--format", file_format, "--split", "0.7,0.3,0")
    assert pack(str(folder), tmp_path / "out", *words) == 0
    packed, source = (open_path(CONFIG, str(path), reading) for path in (tmp_path / "out", folder))

    def pixels(source: Source, count: int) -> dict[str, list[bytes]]:
        samples = [source[number] for number in range(count)]
        return {sample.id: [image.tobytes() for image in sample.images] for sample in samples}

    assert len(packed) == 4  # the last row has no image
    assert sorted(pixels(packed, 4).values()) == sorted(pixels(source, 4).values())
    # Two rows share an image, so that they are in one part.
    parts = [open_path(CONFIG, str(tmp_path / "out" / part), reading) for part in ("train", "val")]
    by_part = [{image for images in pixels(part, len(part)).values() for image in images} for part in parts]
    assert by_part[0].isdisjoint(by_part[1])
    again = tmp_path / "again"
    assert pack(str(tmp_path / "out"), again, "--split", "1", "--format", FORMATS[file_format == FORMATS[0]]) == 0
    assert sorted(pixels(open_path(CONFIG, str(again), reading), 4).values()) == sorted(pixels(source, 4).values())


@pytest.mark.parametrize("file_format", FORMATS)
def test_shapes_are_packed_as_they_are_drawn(tmp_path: Path, file_format: str) -> None:
    words = ["dataset.shapes.num_train=8", "--split", "1", "--format", file_format]
    assert pack("shapes", tmp_path / "out", *words) == 0
    drawn = open_path(CONFIG, "shapes", READINGS[1])
    packed = open_path(CONFIG, str(tmp_path / "out"), READINGS[1])
    assert len(packed) == 8
    assert packed[0].audio is not None
    assert type(packed[0].dialogues) is type(drawn[0].dialogues)


def test_bytes_and_all_columns_are_kept(tmp_path: Path) -> None:
    source = Path(folder_of(tmp_path / "data"))
    pack(str(source), tmp_path / "a", "--split", "1")
    pack(str(source), tmp_path / "b", "--split", "1", "--format", "parquet")
    table = pq.ParquetDataset(tmp_path / "b" / "train").read().to_pylist()
    images = [(source / f"{n}.jpg").read_bytes() for n in range(10)]
    assert [row["image"] for row in table] == images
    assert [row["extra"] for row in table] == [row["extra"] for row in rows_of()]
    assert [row["note"] for row in table] == [row["note"] for row in rows_of()]
    assert [row["source_id"] for row in table] == [f"{n}.jpg" for n in range(10)]
    files: dict[str, bytes] = {}
    for shard in sorted((tmp_path / "a" / "train").glob("*.tar")):
        with tarfile.open(shard) as archive:
            files |= {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]
        assert shard.with_name(shard.name + INDEX_SUFFIX).exists()
    assert [files[f"{n:09d}.jpg"] for n in range(10)] == images
    assert [json.loads(files[f"{n:09d}.json"])["extra"] for n in range(10)] == [row["extra"] for row in rows_of()]


def near_data(folder: Path, order: list[int]) -> str:
    """Twenty pictures, each also as a JPEG, as another file of the same pixels, and in a column of groups."""
    folder.mkdir()
    table = []
    for number in order:
        image = Image.open(BytesIO(picture(number))) if number < 10 else photo(96, 64).crop((0, 0, 64 + number, 64))
        image = image if number < 10 else image.rotate(30 * number)
        image.save(folder / f"{number}.png")
        image.save(folder / f"{number}.jpg", quality=80)
        image.save(folder / f"{number}-same.png", compress_level=1)
        table += [{"image": f"{number}{end}", "caption": f"{number}"} for end in (".png", ".jpg", "-same.png")]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, table)))
    return str(folder)


def parts_of(out: Path) -> dict[str, set[str]]:
    return {
        part: {sample[0][0] for sample in said(str(out / part), Reading())}
        for part in ("train", "val", "test")
        if (out / part).exists()
    }


def test_equal_and_near_equal_images_stay_together(tmp_path: Path) -> None:
    order = list(range(20))
    pack(near_data(tmp_path / "a", order), tmp_path / "out-a", "--split", "0.6,0.2,0.2")
    pack(near_data(tmp_path / "b", order[::-1]), tmp_path / "out-b", "--split", "0.6,0.2,0.2", "--format", "parquet")
    parts = parts_of(tmp_path / "out-a")
    assert sum(map(len, parts.values())) == 20
    assert parts_of(tmp_path / "out-b") == parts
    pack(str(tmp_path / "a"), tmp_path / "out-c", "--split", "0.6,0.2,0.2", "--seed", "1")
    assert parts_of(tmp_path / "out-c") != parts
    found = json.loads((tmp_path / "out-a" / "duplicates" / "duplicates.json").read_text())
    assert (found["num_groups"], found["num_images_in_groups"]) == (20, 60)
    assert found["pairs"]["pixels"] == 20
    lines = (tmp_path / "out-a" / "duplicates" / "pairs.csv").read_text().splitlines()
    assert lines[0] == "first,second,kind,hash_bits,difference"
    assert "0.png,0-same.png,pixels,0,0.0" in lines
    for name in ("pairs.png", "distances.png"):
        with Image.open(tmp_path / "out-a" / "duplicates" / name) as drawn:
            assert min(drawn.size) > 100


def test_pairs_that_are_not_compared_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("impresa.data.near_duplicates.candidates._MOST_NEIGHBOURS", 1)
    source = sidecars_of(tmp_path / "data")
    for quality in (90, 80, 70, 60):
        Image.open(BytesIO(picture(1))).save(tmp_path / "data" / f"{quality}.jpg", quality=quality)
        (tmp_path / "data" / f"{quality}.txt").write_text(f"{quality}")
    assert pack(source, tmp_path / "out", "--split", "1") == 0
    assert "pairs were not compared, as too many images hash alike" in capsys.readouterr().out
    assert main(["data", "check", source]) == 0
    assert "not compared" in capsys.readouterr().out


def test_bad_rows_are_counted_and_the_sums_add_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(folder_of(tmp_path / "data"))
    (folder / "1.jpg").write_bytes(b"")
    (folder / "2.jpg").write_bytes(b"nothing")
    (folder / "3.jpg").unlink()
    assert pack(str(folder), tmp_path / "out") == 0
    done = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert done["num_rows"] == sum(done["num_packed"].values()) + sum(done["bad"].values()) == 10
    assert done["bad"] == {"the image is empty": 1, "not an image of a known format": 1, "the image cannot be read": 1}
    bad = [json.loads(line)["id"] for line in (tmp_path / "out" / "bad_rows.jsonl").read_text().splitlines()]
    assert bad == ["1.jpg", "2.jpg", "3.jpg"]
    assert "3 of 10 rows are left out" in capsys.readouterr().out


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def killed_pack(name: str, when: Callable[..., bool], source: str, out: Path, *words: str) -> None:
    """A pack in a child that is killed before it calls a function of its module with arguments as asked for."""

    def work() -> None:
        owner, _, last = name.rpartition(".")
        module = import_module(owner)
        before = getattr(module, last)
        setattr(module, last, lambda *given, **more: die() if when(*given) else before(*given, **more))
        pack(source, out, *words)

    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL


def test_a_killed_pack_leaves_nothing_and_the_next_one_starts_clean(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source, new = folder_of(tmp_path / "data"), tmp_path / "new"
    killed_pack("impresa.data.packing.pack.write_duplicates", lambda *_: True, source, new / "out")
    assert [path.name for path in new.iterdir()] == [".out.packing"]
    assert pack(source, new / "out") == 0
    assert ".out.packing: was left by a pack that was killed; it is removed" in caplog.text
    assert [path.name for path in new.iterdir()] == ["out"]
    assert not list((new / "out").glob(".*"))


def test_ctrl_c_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("impresa.data.packing.pack.write_duplicates", interrupted)
    assert pack(sidecars_of(tmp_path / "data"), tmp_path / "out") == 130
    assert [path.name for path in tmp_path.iterdir() if path.name != "cache"] == ["data"]


def test_an_earlier_pack_outlives_a_kill_while_it_is_replaced(tmp_path: Path) -> None:
    source, new = folder_of(tmp_path / "data"), tmp_path / "new"
    out, kept = new / "out", new / "out" / "mine"
    assert pack(source, out) == 0
    kept.touch()
    # Between the two moves that replace it: the next call finds it again.
    killed_pack("os.replace", lambda start, end: end == out, source, out, "--force")
    assert not out.exists()
    assert pack(source, out) == 2
    assert kept.exists()
    # When only its rest is to be removed: that is no obstacle to the next one.
    is_rest = lambda path: path.name == ".out.old"  # noqa: E731
    killed_pack("impresa.data.packing.pack.remove", is_rest, source, out, "--force")
    assert (out.exists(), kept.exists(), (new / ".out.old").exists()) == (True, False, True)
    assert pack(source, out, "--force") == 0
    assert [path.name for path in new.iterdir()] == ["out"]


def test_a_full_disk_leaves_nothing_and_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = sidecars_of(tmp_path / "data"), tmp_path / "new" / "out"
    with files_of_at_most(40_000):
        assert main(["data", "pack", source, "--out", str(out), "--split", "1"]) == 2
    assert capsys.readouterr().err == f"{out}: File too large\n"
    assert not list(out.parent.iterdir())
    with files_of_at_most(4_000):  # which what is kept of the images to compare them does not fit into
        assert main(["data", "check", source]) == 2
    assert capsys.readouterr().err == f"{gettempdir()}: File too large\n"


def test_files_of_no_sample_are_told_and_one_process_packs_at_a_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.tar").write_bytes(tar_of([("1.png", picture(1)), ("README", b""), (".x.png", b"")]))
    words = (str(tmp_path / "a.tar"), tmp_path / "out", "--split", "1")
    with locked(tmp_path / ".out.packing"):
        assert pack(*words) == 2
    assert f".out.packing: is in use by process {os.getpid()} on" in capsys.readouterr().err
    assert pack(*words) == 0
    assert "no part of any row: files of no sample 1, hidden files 1" in capsys.readouterr().out


def test_other_folders_are_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = folder_of(tmp_path / "data")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.txt").touch()
    assert [pack(source, tmp_path / "mine", *words) for words in ((), ("--force",))] == [2, 2]
    assert "is not empty, and no pack; name a new folder" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["a.txt"]
    assert [pack(source, tmp_path / "out", *words) for words in ((), (), ("--force",))] == [0, 2, 0]
    assert "add --force to replace it" in capsys.readouterr().err
    assert pack(source, Path(source) / "out") == 2
    assert "lies in the data themselves" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--split", "0.5,0.4"], "sum to 1"),
        (["--split", "nan,1"], "sum to 1"),
        (["--split", "a"], "sum to 1"),
        (["--shard-size", "big"], "is no size"),
        (["--shard-size", "1"], "is no size"),
        (["--seed=-1"], "whole number"),
        (["--format", "zip"], "invalid choice"),
        (["--image-size", "32"], "pictures of"),
        (["optimization.lr=1"], "is no key of `dataset`"),
    ],
)
def test_wrong_words_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], line: str
) -> None:
    assert pack(folder_of(tmp_path / "data"), tmp_path / "out", *words) == 2
    err = capsys.readouterr().err
    assert line in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_fewer_pictures_than_parts_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.png").write_bytes(picture(0))
        (folder / f"{number}.txt").write_text("x")
    assert pack(str(folder), tmp_path / "out") == 2
    assert "1 groups of equal or near-equal images cannot be divided into 3 parts" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir() if path.name != "cache"] == ["data"]


def test_a_config_names_its_training_data(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "data")
    config = tmp_path / "mine.yaml"
    config.write_text(f"defaults: [shapes]\ndataset:\n  train_path: {source}\n")
    assert pack(str(config), tmp_path / "out", "dataset.caption_column=note") == 0
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["plan"]["name"] == source


def test_a_column_called_like_an_image_is_none(tmp_path: Path) -> None:
    names = ("jpg", "png", "0.jpg", "wav", "left.jpg", "txt")
    table = [{"image": picture(n, "JPEG"), "caption": f"{n}"} | dict.fromkeys(names, b"x") for n in range(2)]
    pq.write_table(pa.Table.from_pylist(table), tmp_path / "data.parquet")
    assert pack(str(tmp_path / "data.parquet"), tmp_path / "out", "--split", "1") == 0
    assert said(str(tmp_path / "out"), Reading()) == said(str(tmp_path / "data.parquet"), Reading())
    with tarfile.open(tmp_path / "out" / "train" / "00000.tar") as archive:
        ends = {name.partition(".")[2] for name in archive.getnames()}
    assert ends == {"jpg", "txt", "json", "jpg_", "png_", "0.jpg_", "wav_", "left.jpg", "txt_"}


@pytest.mark.parametrize("file_format", FORMATS)
def test_odd_cells_do_not_stop_a_pack(tmp_path: Path, file_format: str) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    odd = [{}, [{}], [None], {"a": {}}, 1 << 80, True, 1.5, "text", None, [[1], ["x"]], {"b": "\udc80"}, "\ud800"]
    table = []
    for number, value in enumerate(odd):
        (folder / f"{number}.png").write_bytes(picture(number))
        table.append({"image": f"{number}.png", "caption": f"number {number}", "odd": value, f"only {number}": value})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, table)))
    assert pack(str(folder), tmp_path / "out", "--format", file_format, "--split", "1") == 0
    assert said(str(tmp_path / "out"), READINGS[0]) == said(str(folder), READINGS[0])
