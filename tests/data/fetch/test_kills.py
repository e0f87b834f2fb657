"""A fetch that is killed at any moment goes on: nothing is fetched twice, lost, or half-written."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

pytest.importorskip("aiohttp")

from impresa.config.dataset import DatasetConfig
from impresa.data.fetch.download import Bounds
from impresa.data.fetch.ledger import NAME
from impresa.data.fetch.run import Settings, fetch
from impresa.data.fetch.table import open_addresses
from impresa.data.shards.writer import part_of
from impresa.data.sources import open_path
from pictures import png
from web_server import Server, drips, silent, web_server

COUNT, KILLS = 240, 3
FETCH = """
import sys
from pathlib import Path
from impresa.data.fetch.download import Bounds
from impresa.data.fetch.run import Settings, fetch
from impresa.data.fetch.table import open_addresses

bounds = Bounds(max_bytes=1 << 20, max_pixels=10_000, timeout_s=30, min_bytes_per_s=0, allow_private=True)
settings = Settings(bounds=bounds, max_shard_bytes=60_000)
fetch(open_addresses(sys.argv[1]), Path(sys.argv[2]), settings, show=lambda counts: print(counts.done, flush=True))
"""
BOUNDS = Bounds(max_bytes=1 << 20, max_pixels=10_000, timeout_s=30, min_bytes_per_s=0, allow_private=True)
SETTINGS = Settings(bounds=BOUNDS, max_shard_bytes=60_000)


def done_in(folder: Path) -> set[str]:
    """Paths that the ledger knows as fetched, read from a copy as the killed process left it."""
    if not (folder / NAME).exists():
        return set()
    with closing(sqlite3.connect(f"file:{folder / NAME}?mode=ro", uri=True)) as file:
        return {url.split("/", 3)[3] for (url,) in file.execute("SELECT url FROM urls WHERE status = 'done'")}


def start(table: Path, folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", FETCH, str(table), str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def write_table(folder: Path, server: Server) -> Path:
    for number in range(COUNT):
        server.routes[f"/{number}.png"] = drips(png(number), 40, 0.002)
    rows = [{"image_url": server.url(f"/{number}.png"), "caption": f"number {number}"} for number in range(COUNT)]
    (folder / "table.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "table.jsonl"


def test_kills(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    with web_server() as server:
        table = write_table(tmp_path, server)
        for kill in range(KILLS):
            process = start(table, folder)
            assert process.stdout is not None
            for line in process.stdout:
                if int(line) >= (kill + 1) * COUNT // (KILLS + 2):
                    break
            process.kill()
            process.wait()
            done = done_in(folder)
            assert len(done) >= (kill + 1) * COUNT // (KILLS + 2)
            before = {path: server.asked[f"/{path}"] for path in done}
        process = start(table, folder)
        process.communicate()
        assert process.returncode == 0
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
        process = start(table, folder)
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) >= COUNT // 2:
                break
        process.kill()
        process.wait()
        (part,) = [part_of(folder, number) for number in range(9) if part_of(folder, number).exists()]
        size = part.stat().st_size
        os.truncate(part, size // 3)
        os.truncate(part, size)  # zeros, as a file system may show them
        monkeypatch.setattr("impresa.data.fetch.ledger._boot", lambda: "another")
        assert fetch(open_addresses(str(table)), folder, SETTINGS).counts.done == COUNT
    source = open_path(DatasetConfig(), str(folder))
    assert len({source[number].captions for number in range(len(source))}) == len(source) == COUNT


def test_ctrl_c_leaves_whole_shards_and_says_how_to_go_on(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    with web_server() as server:
        table = write_table(tmp_path, server)
        server.routes["/7.png"] = silent
        command = [
            sys.executable,
            "-m",
            "impresa",
            "data",
            "fetch",
            str(table),
            "--out",
            str(folder),
            "--allow-private",
        ]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        until = time.monotonic() + 60
        while len(done_in(folder)) < COUNT - 1:
            assert time.monotonic() < until
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate()
        assert process.returncode == 130
        assert said.splitlines()[-2] == f"stopped; impresa data fetch {table} --out {folder} goes on from here"
        assert len(open_path(DatasetConfig(), str(folder))) == COUNT - 1
        server.routes["/7.png"] = png(7)
        assert subprocess.run(command, check=False).returncode == 0
        assert len(open_path(DatasetConfig(), str(folder))) == COUNT
        assert max(server.asked.values()) == 2 == server.asked["/7.png"]
