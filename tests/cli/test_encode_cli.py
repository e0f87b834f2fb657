"""`impresa encode`: what is embedded, what is written and printed, and refusals in one line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import impresa
from fake_model import colour_source
from impresa.cli.main import main
from impresa.config import to_yaml
from impresa.config.decoder import DecoderConfig
from impresa.config.experiment import ExperimentConfig
from impresa.tasks.alignment.embedder import EmbeddingModel
from impresa.tasks.quantization import quantized, ranges_of
from tiny_run import finished_run

REFUSED = {
    "answers squares": "answers: answers questions and embeds nothing; name the run of an alignment",
    "nowhere squares": "RUN: nowhere does not exist; ",
    "run squares --out v.csv": "--out: v.csv is neither a .parquet nor a .npy file; give it one of these endings",
    "run squares --out no/v.npy": "no: is no folder; make it, or name a file in another with --out",
    "run squares --out old.parquet": "old.parquet: is there already; name another file with --out, or add --force",
    "run squares --out new.npy": "new.json: is there already; name another file with --out, or add --force",
    "run squares --out full.npy --force": "full.npy: is a folder; name another file with --out",
    "run squares --dim 17": "--dim: 17 is above 16, the embeddings' width; choose a smaller one",
    "run squares --dim 0": "impresa encode: argument --dim: 0 is not a whole number from 1",
    "run squares --modality audio": "--modality: run has no audio encoder; name image or text",
    "run squares --modality smell": "impresa encode: argument --modality: invalid choice: 'smell'",
    "run squares --prompt-name query": "--prompt-name: is for texts, and none are embedded; add --modality text",
    "run squares --precision int4": "impresa encode: argument --precision: invalid choice: 'int4'",
    "run squares --ranges-of old.parquet": "--ranges-of: is for --precision int8 and uint8, not for float32; leave it",
    "run squares dataset.batch_size=2": "dataset.batch_size: changes nothing here",
    "run squares optimization.lr=1": "optimization.lr: is no key of `dataset`, the only ones here; leave it out",
}
LATE = {
    "run missing": "missing: no such file or folder",
    "run empty": "empty: no images; name a folder",
    "run squares dataset.image_column=picture": "squares/metadata.jsonl: no column 'picture' (there are: ",
    "run squares --modality text": "squares/metadata.jsonl: no column 'caption' (there are: ",
    "run broken": "broken: no usable sample (a.png: ",
    "run one.txt --prompt-name query": "--prompt-name: 'query', but this run has no prompts; leave it out, ",
    "run one.txt --precision int8": "precision: the range of int8 cannot be told from one embedding; ",
    "run one.txt --precision int8 --ranges-of squares/0.png": "squares/0.png: cannot be read (",
    "run one.txt --precision int8 --ranges-of plain.parquet": "plain.parquet: holds no ranges; name a file that",
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a finished run, nine squares with texts and labels, a broken one, and a text file."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").symlink_to(finished_run())
    for folder in ("answers", "squares", "empty", "broken", "full.npy"):
        (tmp_path / folder).mkdir()
    (tmp_path / "answers" / "config.yaml").write_text(to_yaml(ExperimentConfig(decoder=DecoderConfig(type="trm"))))
    (tmp_path / "answers" / "manifest.json").write_text("{}")
    (tmp_path / "broken" / "a.png").write_bytes(b"no image")
    (tmp_path / "old.parquet").write_text("mine")
    (tmp_path / "new.json").write_text("mine")
    (tmp_path / "one.txt").write_text("a red square\n")
    pq.write_table(pq.read_table(_plain(tmp_path / "plain.parquet")), tmp_path / "plain.parquet")
    rows = []
    for i, sample in enumerate(colour_source(9, labels=True).items):
        sample.image.save(tmp_path / "squares" / f"{i}.png")
        rows.append({"image": f"{i}.png", "text": sample.captions[0], "label": sample.label})
    (tmp_path / "squares" / "broken.png").write_bytes(b"no image")
    rows.append({"image": "broken.png", "text": "nothing"})
    (tmp_path / "squares" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def _plain(path: Path) -> Path:
    import pyarrow as pa

    pq.write_table(pa.table({"id": ["a"]}), path)
    return path


@pytest.fixture(scope="module")
def model() -> EmbeddingModel:
    return impresa.load(finished_run(), "cpu")


def told(capsys: pytest.CaptureFixture[str], words: str) -> list[str]:
    assert main(["encode", *words.split()]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out.splitlines()


@pytest.mark.parametrize("words", [*REFUSED, *LATE])
def test_refusals_are_one_line_and_write_nothing(place: Path, capsys: pytest.CaptureFixture[str], words: str) -> None:
    before = sorted(place.rglob("*"))
    assert main(["encode", *words.split()]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith((REFUSED | LATE)[words])
    assert err.count("\n") == 1
    assert sorted(place.rglob("*")) == before


def test_refusals_need_no_torch(place: Path) -> None:
    code = (
        "import sys; from impresa.cli.main import main;"
        "print([main(['encode', *words.split()]) for words in sys.argv[1:]], 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, *REFUSED], capture_output=True, text=True, check=True)
    assert done.stdout == f"{[2] * len(REFUSED)} False\n"


def test_images_of_a_table_are_rows_of_a_parquet_file(
    place: Path, capsys: pytest.CaptureFixture[str], model: EmbeddingModel
) -> None:
    lines = told(capsys, "run squares dataset.caption_column=text --batch-size 4")
    name = f"vectors-{finished_run().name}.parquet"
    assert lines[0] == "9 vectors of 16 float32 numbers: 9 images"
    assert lines[1] == "1 of 10 samples could not be used and were skipped:"
    assert lines[2].startswith("  broken.png: ")
    assert lines[3:] == [name]
    rows = pq.read_table(name).to_pylist()
    assert rows[0] | {"vector": []} == {
        **{"id": "0.png", "modality": "image", "caption": "red square 0 0", "label": "red", "vector": []}
    }
    files = [place / "squares" / row["id"] for row in rows]
    assert torch.allclose(torch.tensor([row["vector"] for row in rows]), model.encode_image(files), atol=1e-6)
    assert str(pq.read_schema(name).field("vector").type) == "fixed_size_list<element: float>[16]"


def test_texts_are_read_without_their_images(
    place: Path, capsys: pytest.CaptureFixture[str], model: EmbeddingModel
) -> None:
    lines = told(capsys, "run squares dataset.caption_column=text --modality text --dim 8 --out new.npy --force")
    assert lines == ["10 vectors of 8 float32 numbers: 10 texts", "new.npy"]
    about = json.loads((place / "new.json").read_text())
    assert (about["dim"], about["precision"], about["ranges"], about["run"]) == (8, "float32", None, "run")
    assert about["rows"][9] == {"id": "broken.png", "modality": "text", "caption": "nothing", "label": None}
    expected = model.encode_text([row["caption"] for row in about["rows"]], dim=8, convert_to_numpy=True)
    assert np.allclose(np.load("new.npy"), expected, atol=1e-6)


def test_both_are_told_apart_in_one_file(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = told(capsys, "run squares dataset.caption_column=text --modality text --modality image")
    assert lines[0] == "18 vectors of 16 float32 numbers: 9 images, 9 texts"
    assert pq.read_table(lines[-1])["modality"].to_pylist() == ["text"] * 9 + ["image"] * 9


def test_pictures_need_no_captions(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "squares" / "metadata.jsonl").unlink()
    (place / "squares" / "broken.png").unlink()
    assert told(capsys, "run squares")[0] == "9 vectors of 16 float32 numbers: 9 images"
    for i in range(9):
        (place / "squares" / f"{i % 2}").mkdir(exist_ok=True)
        (place / "squares" / f"{i}.png").rename(place / "squares" / f"{i % 2}" / f"{i}.png")
    table = pq.read_table(told(capsys, "run squares --out in-folders.parquet")[-1])
    assert table["label"].to_pylist() == ["0"] * 5 + ["1"] * 4
    assert table["caption"].null_count == 9


def test_a_text_file_has_one_on_each_line(
    place: Path, capsys: pytest.CaptureFixture[str], model: EmbeddingModel
) -> None:
    (place / "queries.txt").write_bytes("a red, round thing\r\n\n  \nein Kreis: größer".encode())
    lines = told(capsys, "run queries.txt")
    table = pq.read_table(lines[-1])
    assert table["id"].to_pylist() == ["queries.txt:1", "queries.txt:4"]
    assert table["caption"].to_pylist() == ["a red, round thing", "ein Kreis: größer"]
    assert torch.allclose(torch.tensor(table["vector"].to_pylist()), model.encode_text(table["caption"].to_pylist()))


def test_a_text_file_with_a_header_is_a_table(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "squares" / "captions.txt").write_text('image,caption\n0.png,"a, b"\n1.png,c\n')
    table = pq.read_table(told(capsys, "run squares/captions.txt")[-1])
    assert (table["id"].to_pylist(), table["caption"].to_pylist()) == (["0.png", "1.png"], ["a, b", "c"])
    assert told(capsys, "run squares/captions.txt --modality image --force")[0].endswith(": 2 images")


def test_fewer_bits_and_queries_in_the_ranges_of_their_corpus(
    place: Path, capsys: pytest.CaptureFixture[str], model: EmbeddingModel
) -> None:
    told(capsys, "run squares --precision uint8 --out corpus.npy")
    told(capsys, "run squares --precision uint8 --out corpus.parquet")
    images = model.encode_image([place / "squares" / f"{i}.png" for i in range(9)])
    stored = torch.from_numpy(np.load("corpus.npy"))
    assert stored.dtype == torch.uint8
    assert (stored.int() - quantized(images, "uint8").int()).abs().max() <= 1
    query = model.encode_text(["a red square"], precision="uint8", ranges=ranges_of(images))
    for corpus in ("corpus.npy", "corpus.parquet"):
        told(capsys, f"run one.txt --precision uint8 --ranges-of {corpus} --out query.npy --force")
        assert (torch.from_numpy(np.load("query.npy")).int() - query.int()).abs().max() <= 1
    lines = told(capsys, "run squares --precision ubinary --out bits.parquet")
    assert lines[0] == "9 vectors of 2 uint8 numbers: 9 images"
    assert str(pq.read_schema("bits.parquet").field("vector").type) == "fixed_size_list<element: uint8>[2]"


def test_what_is_written_can_be_searched(
    place: Path, capsys: pytest.CaptureFixture[str], model: EmbeddingModel
) -> None:
    table = pq.read_table(told(capsys, "run squares")[-1])
    with Image.open(place / "squares" / "4.png") as image:
        ((hit,),) = impresa.semantic_search(model.encode_image(image), table["vector"].to_pylist(), top_k=1)
    assert table["id"][hit["corpus_id"]].as_py() == "4.png"


def test_the_embedded_scenes_and_an_interrupted_write(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert told(capsys, "run shapes --modality text --out s.parquet")[0].startswith("8 vectors")
    before = (place / "s.parquet").read_bytes()
    monkeypatch.setattr(pq, "write_table", lambda table, path, **_: path.write_bytes(b"half") / 0)
    with pytest.raises(ZeroDivisionError):
        main(["encode", "run", "shapes", "--out", "s.parquet", "--force"])
    assert (place / "s.parquet").read_bytes() == before
    assert not list(place.glob(".s.parquet*"))


def test_batch_size_and_device_reach_the_model(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from impresa.run_dir import load

    devices, sizes = list[object](), set[object]()
    load_embedder, encode_image = load.load_embedder, EmbeddingModel.encode_image
    monkeypatch.setattr(load, "load_embedder", lambda run, device: devices.append(device) or load_embedder(run, device))
    monkeypatch.setattr(
        EmbeddingModel, "encode_image", lambda *a, **k: sizes.add(k.get("batch_size")) or encode_image(*a, **k)
    )
    told(capsys, "run squares dataset.caption_column=text --batch-size 4 --device cpu")
    assert devices == ["cpu"]
    assert 4 in sizes
