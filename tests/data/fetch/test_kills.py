"""A fetch that is killed at any moment goes on: nothing is fetched twice, lost, or half-written."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sqlite3
import time
from contextlib import closing, redirect_stderr, suppress
from pathlib import Path

import pytest

pytest.importorskip("aiohttp")

from impresa.cli.main import main
from impresa.config.dataset import DatasetConfig
from impresa.data.fetch.download import Bounds
from impresa.data.fetch.ledger import NAME
from impresa.data.fetch.run import Settings, fetch
from impresa.data.fetch.table import open_addresses
from impresa.data.shards.writer import part_of
from impresa.data.sources import Source, open_path
from pictures import png
from web_server import Server, drips, silent, web_server

COUNT, KILLS, PATIENCE_S = 240, 5, 60
BOUNDS = Bounds(max_bytes=1 << 20, max_pixels=10_000, timeout_s=30, min_bytes_per_s=0, allow_private=True)
SETTINGS = Settings(bounds=BOUNDS, max_shard_bytes=60_000)


def done_in(folder: Path) -> set[str]:
    """Paths that the ledger knows as fetched."""
    if not (folder / NAME).exists():
        return set()
    with (
        suppress(sqlite3.OperationalError),
        closing(sqlite3.connect(f"file:{folder / NAME}?mode=ro", uri=True)) as file,
    ):
        return {url.split("/", 3)[3] for (url,) in file.execute("SELECT url FROM urls WHERE status = 'done'")}
    return set()  # it has no tables yet


def start(table: Path, folder: Path) -> multiprocessing.Process:
    """A fetch in a process of its own: a forked one, which has imported everything."""
    process = multiprocessing.get_context("fork").Process(target=run, args=(table, folder))
    process.start()
    return process  # type: ignore[return-value]


def run(table: Path, folder: Path) -> None:
    fetch(open_addresses(str(table)), folder, SETTINGS)


def kill_at(process: multiprocessing.Process, folder: Path, count: int) -> set[str]:
    """Kill it when so many are noted; returns what is noted then."""
    until = time.monotonic() + PATIENCE_S
    while process.is_alive() and len(done_in(folder)) < count:
        assert time.monotonic() < until
        time.sleep(0.002)
    process.kill()
    process.join(PATIENCE_S)
    assert len(done_in(folder)) >= count
    return done_in(folder)


def finish(table: Path, folder: Path) -> None:
    process = start(table, folder)
    process.join(PATIENCE_S)
    assert process.exitcode == 0


def write_table(folder: Path, server: Server) -> Path:
    for number in range(COUNT):
        server.routes[f"/{number}.png"] = drips(png(number), 40, 0.002)
    rows = [{"image_url": server.url(f"/{number}.png"), "caption": f"number {number}"} for number in range(COUNT)]
    (folder / "table.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "table.jsonl"


def samples_in(shard: Path) -> Source:
    return open_path(DatasetConfig(), str(shard))


def test_kills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("impresa.data.fetch.run._TELL_S", 0.0)
    folder = tmp_path / "shards"
    with web_server() as server:
        table = write_table(tmp_path, server)
        for kill in range(KILLS):
            done = kill_at(start(table, folder), folder, (kill + 1) * COUNT // (KILLS + 2))
            before = {path: server.asked[f"/{path}"] for path in done}
            # A training would be told of what no whole shard holds; the last one may have become whole just now.
            readable = sorted(map(len, map(samples_in, folder.glob("*.tar"))))
            told = json.loads((folder / "fetch.json").read_text())["rows_fetched"]
            assert sum(readable) - max(readable, default=0) <= told <= sum(readable)
        finish(table, folder)
    assert before == {path: server.asked[f"/{path}"] for path in before}  # what was noted is not asked for again
    assert server.asked.total() <= COUNT + KILLS * 8  # but for what was under way
    source = open_path(DatasetConfig(), str(folder))
    assert source.left_out == {}  # type: ignore[attr-defined]
    samples = [source[number] for number in range(len(source))]
    found = sorted((int(s.captions[0].split()[1]), s.image and s.image.getpixel((0, 0))) for s in samples)
    assert found == [(number, (number, 0, 7)) for number in range(COUNT)]
    assert not any(path.suffix == ".part" for path in folder.iterdir())


def test_bytes_that_a_loss_of_power_took_are_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "shards"
    with web_server() as server:
        table = write_table(tmp_path, server)
        kill_at(start(table, folder), folder, COUNT // 2)
        (part,) = [part_of(folder, number) for number in range(9) if part_of(folder, number).exists()]
        size = part.stat().st_size
        os.truncate(part, size // 3)
        os.truncate(part, size)  # zeros, as a file system may show them
        monkeypatch.setattr("impresa.data.fetch.ledger._boot", lambda: "another")
        assert fetch(open_addresses(str(table)), folder, SETTINGS).counts.done == COUNT
    source = open_path(DatasetConfig(), str(folder))
    assert len({source[number].captions for number in range(len(source))}) == len(source) == COUNT


def typed(words: list[str], said: Path) -> None:
    with said.open("w") as file, redirect_stderr(file):
        code = main(words)
    os._exit(code)


def test_ctrl_c_leaves_whole_shards_and_says_how_to_go_on(tmp_path: Path) -> None:
    folder, said = tmp_path / "shards", tmp_path / "stderr"
    with web_server() as server:
        table = write_table(tmp_path, server)
        server.routes["/7.png"] = silent
        words = ["data", "fetch", str(table), "--out", str(folder), "--allow-private"]
        process = multiprocessing.get_context("fork").Process(target=typed, args=(words, said))
        process.start()
        until = time.monotonic() + PATIENCE_S
        while len(done_in(folder)) < COUNT - 1:
            assert time.monotonic() < until
            time.sleep(0.01)
        os.kill(process.pid or 0, signal.SIGINT)
        process.join(PATIENCE_S)
        assert process.exitcode == 130
        lines = ["stopped; the same command goes on from here", "interrupted"]
        assert said.read_text().splitlines() == lines
        assert len(open_path(DatasetConfig(), str(folder))) == COUNT - 1
        server.routes["/7.png"] = png(7)
        assert main(words) == 0
        assert len(open_path(DatasetConfig(), str(folder))) == COUNT
        assert max(server.asked.values()) == 2 == server.asked["/7.png"]
