"""`impresa index`, `impresa search` and `impresa search-bench`: what they print, and refusals in one line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from browser import WITH_CHROMIUM, visit
from impresa.cli.main import main
from impresa.cli.search import _print_table
from impresa.search.page import results_page
from impresa.search.snapshot import Result
from some_index import squares, table
from tiny_run import finished_run

REFUSED = {
    "index nowhere squares": "RUN: nowhere does not exist; ",
    "index run": "SOURCE: index-run is no index yet; name what goes into it, such as a folder of pictures",
    "index run missing --out new": "{here}/missing: no such file or folder; name an existing folder or file",
    "index run squares --out squares": "squares: is a folder of something else; name a new folder with --out",
    "index run squares --out no/new": "no: is no folder; make it, or name another with --out",
    "index run squares --out made --drop sub": "--drop: {here}/sub is no source of made; leave it out",
    "index run --out made --drop squares": "--drop: nothing would be left of made; name a source that stays, or delete",
    "index run squares --modality audio": "--modality: the run has no audio encoder; name image or text",
    "index run squares optimization.lr=1": "optimization.lr: is no key of `dataset`, the only ones here; leave it out",
    "search made": "QUERY: there is nothing to search for; give words, or the path of a picture or a sound",
    "search squares red": "squares: is no index, and something else; give what `impresa index` printed last",
    "search run red": "run: is a run, and no index; make one with `impresa index run SOURCE`, and give what it prints",
    "search new red": "new: is no index; make it with `impresa index RUN SOURCE --out new`",
    "search red made": "INDEX: red is no index, and made is one; name it before what to search for",
    "search made red --where shape=1": "where: Schema error: No field named shape; write a condition such as ",
    "search made red --dim 99": "dim: 99 is not within 1 to 16, the vectors' width; choose one",
    "search made red --weight 2": "impresa search: argument --weight: 2 is not a number from 0 to 1",
    "search made red --html no/page.html": "--html: no is no folder; make it, or name a page in another",
    "search made red --run squares": "squares: the training has not finished; ",
    "search made gone.png": "gone.png: there is no such file; name one",
    "search made --sound squares/0.png": "encode_audio: this model has no audio encoder",
    "search-bench squares": "squares: is no index, and something else; ",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run, squares, and their index `made`."""
    folder = tmp_path_factory.mktemp("commands")
    (folder / "run").symlink_to(finished_run())
    table(folder / "squares", 12)
    (folder / "squares" / "12.png").write_bytes(b"no image")
    rows = folder / "squares" / "metadata.jsonl"
    rows.write_text(rows.read_text() + '{"image": "12.png", "caption": "broken"}\n')
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["index", "run", "squares", "--out", "made"]) == 0
    return folder


@pytest.fixture
def here(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(made)
    return made


@pytest.mark.parametrize(("line", "fault"), REFUSED.items())
def test_refusals_are_one_line(line: str, fault: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(line.split()) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert errors[0].startswith(fault.format(here=here.resolve()))


def test_index_prints_what_it_did(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["index", "run", "--out", "made"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "12 rows: 12 samples unchanged"
    assert lines[1] == "1 of 13 samples could not be used and were skipped:"
    assert lines[2].startswith("  1: not an image of a known format")
    assert lines[-1] == "made"


def test_search_prints_a_table_and_json(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", "made", "squares/4.png", "--top", "2"]) == 0
    table_of = capsys.readouterr().out.splitlines()
    assert table_of[0].split() == ["rank", "score", "path", "caption"]
    assert table_of[1].split() == ["1", "1.000", "4.png", "square", "4"]
    words = ["search", "made", "--image", "squares/4.png", "--text", "red", "--weight", "0.1", "--not", "blue"]
    assert main([*words, "--where", "label = 'odd'", "--dim", "4", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["label"] for row in found] == ["odd"] * 6
    assert found[0]["others"].keys() == {"year", "price", "path_"}
    assert "thumbnail" not in found[0]
    assert main(["search", "made", "red", "--where", "year > 3000"]) == 0
    assert capsys.readouterr().out == "no row fulfils the condition\n"


def test_long_captions_leave_room_for_the_rest(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    name = "sub/a picture of some name.png"
    _print_table([Result(1, 0.25, "key", "id", "source", "image", name, "red " * 100, None, {}, None)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["rank", "score", "path", "caption"]
    assert lines[1].startswith(f"    1  0.250  {name}  red")


def test_words_of_others_are_no_markup_and_any_text() -> None:
    words = "<script>alert(1)</script>\udcff"
    page = results_page(
        words, words, words, [Result(1, 0.25, words, words, words, "image", words, words, words, {}, b"")]
    )
    assert "<script" not in page
    assert page.encode().count(b"&lt;script&gt;alert(1)&lt;/script&gt;\\udcff") >= 6


@WITH_CHROMIUM
def test_the_page_stands_alone(here: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    assert main(["search", "made", "a <b>red</b> square", "--top", "5", "--html", str(page)]) == 0
    seen = visit(page.read_text(), tmp_path)
    assert seen.console == []
    assert seen.dom.count("data:image/jpeg;base64,") == 5
    assert "a &lt;b&gt;red&lt;/b&gt; square" in seen.dom
    assert "http" not in seen.dom.replace("http-equiv", "")


def test_the_bench_prints_each_way_and_keeps_one(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search-bench", "made", "--recall", "0.5", "--queries", "12", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    kept = found["ways"][found["kept"]]
    assert kept["recall"] >= 0.5
    assert main(["search-bench", "made", "--queries", "12"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:4] == ["dim", "shortlist", "recall@10", "latency"]
    assert sum(line.endswith("kept") for line in lines[:-1]) == 1
    assert lines[-1] == "12 of rows as queries; the fastest with a recall of 0.99 or more is kept"


def test_without_lancedb_one_line_names_the_extra(here: Path) -> None:
    code = "import sys; sys.modules['lancedb'] = None; from impresa.cli.main import main; sys.exit(main(sys.argv[1:]))"
    for words in (["search", "made", "red"], ["index", "run", "squares", "--out", "new"]):
        done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1
        assert done.stderr.endswith("pip install 'impresa[search]'\n")
        assert not (here / "new").exists()


def test_plain_folders_need_no_overrides(here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    squares(tmp_path / "plain", 3)
    out = str(tmp_path / "i")
    assert main(["index", "run", str(tmp_path / "plain"), "--out", out, "--batch-size", "2", "--device", "cpu"]) == 0
    assert capsys.readouterr().out.splitlines() == ["3 rows: 3 embedded", out]
