"""`impresa export`: refusals in one line, without torch, and nothing left behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from impresa.cli.main import main
from impresa.config import to_yaml
from impresa.config.decoder import DecoderConfig
from impresa.config.experiment import ExperimentConfig

RUNS = {
    "alignment": ExperimentConfig(),
    "trm": ExperimentConfig(decoder=DecoderConfig(type="trm")),
    "frozen": ExperimentConfig(decoder=DecoderConfig(freeze=True)),
    "recursive": ExperimentConfig(decoder=DecoderConfig(use_lora=True, use_trm_recursion=True)),
    "adapted": ExperimentConfig(decoder=DecoderConfig(use_lora=True)),
}
REFUSED = {
    "alignment new": "alignment: is an alignment; choose --to safetensors, sentence-transformers, transformers, "
    "open_clip or onnx",
    "alignment --to peft --out new": "alignment: is an alignment, and peft is for language models; choose --to ",
    "adapted new --to onnx": "adapted: has a decoder, and onnx is for the encoders of an alignment; choose --to peft",
    "adapted new --out other": "--out: other, but DIR is new; give one of them",
    "adapted new --merge --to peft": "--merge: is --to merged, and contradicts --to peft; give one of them",
    "trm new": "trm: no other library knows its decoder, a trm; use it by impresa.load",
    "trm new --merge": "trm: no other library knows its decoder, a trm; use it by impresa.load",
    "frozen new": "frozen: its language model was frozen, so that there is nothing to export; it is Qwen/Qwen2.5-3B-",
    "recursive new --merge": "recursive: no plain language model holds its latent recursion; use it by impresa.load",
    "adapted full": "full: is there already; name a new or an empty folder",
    "adapted full/file --merge": "full/file: is there already; name a new or an empty folder",
    "adapted": "--out: no folder is named; give --out DIR",
    "nowhere new": "RUN: nowhere does not exist; ",
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with runs and a folder that is not empty."""
    monkeypatch.chdir(tmp_path)
    for name, config in RUNS.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(to_yaml(config))
        (tmp_path / name / "manifest.json").write_text("{}")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    return tmp_path


@pytest.mark.parametrize("words", REFUSED)
def test_refusals_are_one_line_and_write_nothing(place: Path, capsys: pytest.CaptureFixture[str], words: str) -> None:
    before = sorted(place.rglob("*"))
    assert main(["export", *words.split()]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith(REFUSED[words])
    assert told.err.count("\n") == 1
    assert sorted(place.rglob("*")) == before


def test_a_damaged_run_leaves_nothing_behind(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(place.iterdir())
    assert main(["export", "adapted", "new"]) == 2
    assert "adapted/manifest.json: `format`: Field required" in capsys.readouterr().err
    assert sorted(place.iterdir()) == before


def test_refusals_need_no_torch(place: Path) -> None:
    code = (
        "import sys; from impresa.cli.main import main;"
        "print([main(['export', *words.split()]) for words in sys.argv[1:]], 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, *REFUSED], capture_output=True, text=True, check=True)
    assert done.stdout == f"{[2] * len(REFUSED)} False\n"


@pytest.mark.parametrize(("folder", "reason"), [
    ("full/file/new", "File exists"),
    ("full/file/a/b", "Not a directory"),
    ("x" * 300, "File name too long"),
])  # fmt: skip
def test_a_place_that_cannot_be_written_to_is_refused(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, folder: str, reason: str
) -> None:
    monkeypatch.setattr("impresa.run_dir.manifest.verify", lambda run: None)
    monkeypatch.setattr("impresa.tasks.answering.language_model.revision_of_language_model", lambda *_: None)
    before = sorted(place.rglob("*"))
    assert main(["export", "adapted", folder]) == 2
    assert capsys.readouterr().err == f"{folder}: cannot be written ({reason}); name another folder\n"
    assert sorted(place.rglob("*")) == before
