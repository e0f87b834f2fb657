"""`impresa map`: which data are drawn, what is printed and written, and refusals in one line."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from fake_model import colour_source
from impresa.cli.main import main
from impresa.config import to_yaml
from impresa.config.dataset import DatasetConfig
from impresa.config.decoder import DecoderConfig
from impresa.config.experiment import ExperimentConfig
from impresa.data.sources import split_read
from tiny_run import finished_run

RUNS = {"alignment": ExperimentConfig(), "answers": ExperimentConfig(decoder=DecoderConfig(type="trm"))}
REFUSED = {
    "answers": "answers: answers questions and embeds nothing; name the run of an alignment",
    "nowhere": "RUN: nowhere does not exist; ",
    "alignment --split all --data photos": "--split: photos is taken whole; leave --split out",
    "alignment --split some": "impresa map: argument --split: invalid choice: 'some'",
    "alignment dataset.caption_column=text": "dataset.caption_column=text: is for other data than the run's own",
    "alignment --data photos dataset.batch_size=2": "dataset.batch_size: changes nothing here",
    "alignment --limit 0": "impresa map: argument --limit: 0 is not a whole number from 1",
    "alignment --out full": "full: is not empty; name another folder with --out, or add --force to replace its map",
    "alignment --out full/file": "full/file: is a file; name a folder with --out",
    "alignment --out full/file/new --force": "full/file/new: cannot be written (Not a directory)",
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a finished run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "alignment").symlink_to(finished_run())
    (tmp_path / "answers").mkdir()
    (tmp_path / "answers" / "config.yaml").write_text(to_yaml(RUNS["answers"]))
    (tmp_path / "answers" / "manifest.json").write_text("{}")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    return tmp_path


@pytest.fixture
def folder(place: Path) -> Path:
    """Nine squares with captions and labels, and a broken one."""
    path = place / "squares"
    path.mkdir()
    rows = []
    for i, sample in enumerate(colour_source(9, labels=True).items):
        sample.image.save(path / f"{i}.png")
        rows.append({"image": f"{i}.png", "text": sample.captions[0], "label": sample.label})
    (path / "broken.png").write_bytes(b"no image")
    rows.append({"image": "broken.png", "text": "nothing"})
    (path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.mark.parametrize("words", REFUSED)
def test_refusals_are_one_line_and_write_nothing(place: Path, capsys: pytest.CaptureFixture[str], words: str) -> None:
    before = sorted(place.rglob("*"))
    assert main(["map", *words.split()]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith(REFUSED[words])
    assert told.err.count("\n") == 1
    assert sorted(place.rglob("*")) == before


def test_refusals_need_no_torch(place: Path) -> None:
    words = [words for words in REFUSED if "new" not in words]
    code = (
        "import sys; from impresa.cli.main import main;"
        "print([main(['map', *words.split()]) for words in sys.argv[1:]], 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    assert done.stdout == f"{[2] * len(words)} False\n"


def test_the_last_line_is_the_page_in_a_folder_of_the_runs_name(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = finished_run().name
    before = {path: path.read_bytes() for path in finished_run().rglob("*") if path.is_file()}
    assert main(["map", "alignment"]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0].startswith("16 points: 8 images, 8 texts")
    assert lines[1].startswith("two dimensions show ")
    assert lines[-1] == f"map-{name}/map.html"
    assert err == ""
    assert sorted(path.name for path in (place / f"map-{name}").iterdir()) == ["map.html", "map.parquet"]
    assert before == {path: path.read_bytes() for path in finished_run().rglob("*") if path.is_file()}
    assert main(["map", "alignment"]) == 2
    assert main(["map", "alignment", "--force", "--limit", "4"]) == 0
    assert len(pq.read_table(f"map-{name}/map.parquet")) == 8


def test_several_splits_are_told_apart(place: Path) -> None:
    for words in (["--split", "all"], ["--split", "train", "--split", "val", "--split", "test"]):
        assert main(["map", "alignment", *words, "--out", "all", "--force"]) == 0
        rows = pq.read_table("all/map.parquet").to_pylist()
        images = [row["split"] for row in rows if row["modality"] == "image"]
        assert {split: images.count(split) for split in images} == {"train": 18, "val": 8, "test": 8}
    assert main(["map", "alignment", "--data", "shapes", "--split", "val", "--out", "val"]) == 0
    assert set(pq.read_table("val/map.parquet")["split"].to_pylist()) == {"val"}


def test_other_data_are_drawn_whole_with_keys_of_their_own(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["map", "alignment", "--data", str(folder), "dataset.caption_column=text", "--out", "new"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("18 points: 9 images, 9 texts")
    assert lines[2].startswith("1 of 10 samples could not be used and were skipped (")
    rows = pq.read_table("new/map.parquet").to_pylist()
    assert {row["label"] for row in rows} == {"red", "green", "blue", "white", "black", "yellow"}
    assert {row["split"] for row in rows} == {"all"}


def test_force_replaces_the_map_and_nothing_else(place: Path) -> None:
    assert main(["map", "alignment", "--out", "full", "--force"]) == 0
    assert sorted(path.name for path in (place / "full").iterdir()) == ["file", "map.html", "map.parquet"]
    shutil.rmtree(place / "full")


def test_data_without_a_test_split_have_two_to_draw(folder: Path) -> None:
    own, embedded = DatasetConfig(train_path=str(folder)), DatasetConfig()
    assert [split_read(own, split) for split in ("train", "val", "test")] == ["train", "val", "val"]
    assert [split_read(embedded, split) for split in ("train", "val", "test")] == ["train", "val", "test"]


def test_method_batch_size_and_device_are_taken(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openTSNE")
    from impresa.run_dir import load
    from impresa.tasks.alignment.embedder import EmbeddingModel

    devices, sizes = list[object](), set[object]()
    load_embedder, encode_text = load.load_embedder, EmbeddingModel.encode_text
    monkeypatch.setattr(load, "load_embedder", lambda run, device: devices.append(device) or load_embedder(run, device))
    monkeypatch.setattr(
        EmbeddingModel, "encode_text", lambda *a, **k: sizes.add(k.get("batch_size")) or encode_text(*a, **k)
    )
    for method in ("pca", "tsne"):
        words = ["--split", "all", "--method", method, "--batch-size", "3", "--device", "cpu", "--out", method]
        assert main(["map", "alignment", *words]) == 0
    assert pq.read_table("pca/map.parquet")["x"] != pq.read_table("tsne/map.parquet")["x"]
    assert devices == ["cpu", "cpu"]
    assert 3 in sizes
