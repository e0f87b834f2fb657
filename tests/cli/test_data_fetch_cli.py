"""`impresa data fetch`, as it is typed, and what training says of a half-fetched table."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("aiohttp")

from impresa.cli.main import main
from pictures import png
from web_server import Server, says, web_server

NUM = 12


@pytest.fixture
def server() -> Iterator[Server]:
    with web_server() as found:
        found.routes = {f"/{number}.png": png(number) for number in range(NUM)}
        yield found


def write_table(folder: Path, server: Server, count: int = NUM + 3) -> str:
    """A table whose last three addresses are dead."""
    rows = "".join(f"{server.url(f'/{n}.png')},the number {n},{n}\n" for n in range(count))
    (folder / "table.csv").write_text(f"link,text,number\n{rows}")
    return str(folder / "table.csv")


def fetch(table: str, shards: Path, *more: str) -> int:
    return main(["data", "fetch", table, "--out", str(shards), "--allow-private", "--tries", "1", *more])


def test_report(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server.routes["/13.png"] = says(status="500 Internal Server Error")
    assert fetch(write_table(tmp_path, server), tmp_path / "shards") == 0
    out, err = capsys.readouterr()
    shown = " ".join(out.replace("│", " ").split())
    for line in (
        "rows 15 rows fetched 12",
        "addresses 15",
        "fetched 12",
        "failed, may pass 1",
        "failed for good 2",
        "requests 15",
        "failures that may pass (--retry-failed) HTTP 500: 1",
        "failures for good HTTP 404: 2",
        "hosts of failures 127.0.0.1: 3 (HTTP 404 2, HTTP 500 1)",
    ):
        assert line in shown
    assert out.splitlines()[-1] == str(tmp_path / "shards")
    assert err == ""


def test_json_and_retry(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server.routes["/13.png"] = says(status="500 Internal Server Error")
    table = write_table(tmp_path, server)
    assert fetch(table, tmp_path / "shards", "--json") == 0
    first = json.loads(capsys.readouterr().out)
    assert (first["num_rows"], first["num_rows_fetched"], first["num_urls"], first["num_tries"]) == (15, 12, 15, 15)
    assert first["reasons"] == {"passing": {"HTTP 500": 1}, "permanent": {"HTTP 404": 2}}
    assert first["hosts"] == [{"host": "127.0.0.1", "failed": 3, "reasons": {"HTTP 404": 2, "HTTP 500": 1}}]
    server.routes |= {"/13.png": png(13), "/14.png": png(14)}
    assert fetch(table, tmp_path / "shards", "--json", "--retry-failed") == 0
    assert json.loads(capsys.readouterr().out)["reasons"] == {"passing": {}, "permanent": {"HTTP 404": 2}}
    assert fetch(table, tmp_path / "shards", "--json", "--retry-all") == 0
    assert json.loads(capsys.readouterr().out)["done"] == 14


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--max-mib", "0"], "is not a whole number from 1"),
        (["--timeout", "0"], "is not a number from 1"),
        (["dataset.max_file_mib=3"], "impresa data fetch takes no keys"),
        (["--url-column", "text2"], "there is no column 'text2' (there are: link, text, number)"),
    ],
)
def test_faults_are_one_line(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert fetch(write_table(tmp_path, server), tmp_path / "shards", *arguments) == 2
    _, err = capsys.readouterr()
    assert said in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "shards").exists()


def test_progress_without_a_terminal_is_a_line_now_and_then(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("impresa.cli.data_fetch._LINE_S", 0.0)
    assert fetch(write_table(tmp_path, server), tmp_path / "shards") == 0
    last = capsys.readouterr().err.splitlines()[-1]
    assert re.fullmatch(r"15 of 15 addresses, 3 failed, \d+ a second, about 0:00:00 left", last)


def test_nothing_at_all(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server.routes.clear()
    assert fetch(write_table(tmp_path, server), tmp_path / "shards") == 2
    out, err = capsys.readouterr()
    assert "none of 15 pictures could be fetched" in err
    assert "HTTP 404: 15" in out


def test_private_addresses_need_to_be_allowed(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "fetch", write_table(tmp_path, server), "--out", str(tmp_path / "shards")]) == 2
    assert "private address: 15" in capsys.readouterr().out


def test_a_package_is_missing(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "aiohttp", None)
    assert fetch(write_table(tmp_path, server), tmp_path / "shards") == 2
    assert "pip install 'impresa[fetch]'" in capsys.readouterr().err


def test_training_and_check_say_what_is_missing(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from impresa.data.sources.base import say_once

    say_once.cache_clear()
    shards, line = tmp_path / "shards", "3 of 15 rows of the table are not fetched"
    assert fetch(write_table(tmp_path, server), shards) == 0
    capsys.readouterr()
    assert main(["data", "check", str(shards), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["num_good"], found["num_captions"]) == (NUM, NUM)
    assert found["notes"][0] == line
    say_once.cache_clear()
    tiny = ["vision_encoder.depth=1", "text_encoder.depth=1"]
    settings = ["dataset.batch_size=4", "dataset.num_workers=0", "dataset.image_size=16", "dataset.val_fraction=0.3"]
    data = [f"dataset.train_path={shards}", f"dataset.val_path={shards}", "--dry-run"]
    assert main(["train", "shapes", *tiny, *settings, *data]) == 0
    assert line in capsys.readouterr().err
