"""`impresa explain`: a picture or a page of any run, and refusals in one line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from impresa.cli.main import main
from impresa.config import to_yaml
from impresa.config.decoder import DecoderConfig
from impresa.config.experiment import ExperimentConfig
from tiny_run import finished_run
from tiny_vlm import finished_vlm, picture

REFUSED = {
    "nowhere a.png": "RUN: nowhere does not exist; ",
    "alignment": "impresa explain: the following arguments are required: IMAGE; ",
    "alignment none.png": "none.png: No such file or directory; give the path of an image file",
    "alignment text.png": "text.png: not an image of a known format",
    "alignment a.png --question what": "--question: alignment is an alignment and answers nothing; give --text",
    "vlm a.png --text what": "--text: vlm answers questions and compares nothing; give --question, or neither",
    "alignment a.png --text=": "--text: is empty; say something, or leave it out",
    "vlm a.png --question=": "--question: is empty; say something, or leave it out",
    "alignment a.png --out x.jpg": "--out: x.jpg is neither *.png nor *.html; name it so",
    "alignment a.png --out a.png": "--out: a.png is the image itself; name another file",
    "alignment a.png --out no/x.png": "--out: no/x.png lies in a folder that does not exist; name a file",
    "alignment a.png --out full.png": "--out: full.png is a folder; name a file",
    "alignment a.png --method best": "impresa explain: argument --method: invalid choice: 'best'",
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with an image and two runs that have a config alone."""
    monkeypatch.chdir(tmp_path)
    configs = {"alignment": ExperimentConfig(), "vlm": ExperimentConfig(decoder=DecoderConfig(type="trm"))}
    for name, config in configs.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(to_yaml(config))
        (tmp_path / name / "manifest.json").write_text("{}")
    picture(1).save(tmp_path / "a.png")
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "full.png").mkdir()
    return tmp_path


@pytest.mark.parametrize("words", REFUSED)
def test_refusals_are_one_line_and_write_nothing(place: Path, capsys: pytest.CaptureFixture[str], words: str) -> None:
    before = {path: path.stat().st_mtime_ns for path in place.rglob("*")}
    assert main(["explain", *words.split()]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith(REFUSED[words])
    assert told.err.count("\n") == 1
    assert {path: path.stat().st_mtime_ns for path in place.rglob("*")} == before


def test_refusals_need_no_torch(place: Path) -> None:
    code = (
        "import sys; from impresa.cli.main import main;"
        "print([main(['explain', *words.split()]) for words in sys.argv[1:]], 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, *REFUSED], capture_output=True, text=True, check=True)
    assert done.stdout == f"{[2] * len(REFUSED)} False\n"


@pytest.mark.parametrize("words", ["", "--text=red --method=rollout"])
def test_a_picture_of_an_alignment(place: Path, capsys: pytest.CaptureFixture[str], words: str) -> None:
    run_dir = str(finished_run())
    capsys.readouterr()  # of the training
    assert main(["explain", run_dir, "a.png", *words.split(), "--device=cpu"]) == 0
    told = capsys.readouterr()
    assert (told.out, told.err) == ("explain.png\n", "")
    with Image.open("explain.png") as found:
        assert found.width > 1000
        assert found.height > 500


def test_a_page_of_an_answer(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--question", "is it <red>?", "--out", "page.html", "--device", "cpu"]
    run_dir = str(finished_vlm())
    capsys.readouterr()
    assert main(["explain", run_dir, "a.png", *words]) == 0
    assert capsys.readouterr().out == "page.html\n"
    page = Path("page.html").read_text(encoding="utf-8")
    assert "is it &lt;red&gt;?" in page
    for title in ("The answer from cycle to cycle", "Where each answer token looks", "Answer tokens on the picture"):
        assert f"<h2>{title}</h2>" in page


def test_another_method_draws_other_maps(place: Path) -> None:
    for method in ("last", "rollout"):
        assert main(["explain", str(finished_run()), "a.png", "--method", method, "--out", f"{method}.png"]) == 0
    assert Path("last.png").read_bytes() != Path("rollout.png").read_bytes()
