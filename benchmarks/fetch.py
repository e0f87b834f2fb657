"""Fetching many small pictures from a local server: files a second of one processor, and what twenty kills cost.

    python benchmarks/fetch.py [--output fetch.json] [--quick]

The server is a process of its own that holds the pictures (JPEG, 64 x 64 pixels) in memory and counts what it is asked
for. `impresa data fetch` into shards takes turns with a bare aiohttp client that makes as many requests at once and
keeps nothing; seconds are those of the processor of the fetching process alone. Then a fetch is killed (SIGKILL) at
random moments and started again, and what it has at its end is held against what was served.
"""

from __future__ import annotations

import asyncio
import io
import json
import multiprocessing
import random
import sqlite3
import statistics
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from hashlib import sha256
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
from PIL import Image
from timing import command, store

from impresa.config.dataset import DatasetConfig
from impresa.data.fetch.download import Bounds
from impresa.data.fetch.ledger import NAME
from impresa.data.fetch.run import Settings, fetch
from impresa.data.fetch.table import open_addresses
from impresa.data.sources import open_path

FULL, QUICK = (4_000, 4_000, 20, 5), (100, 200, 1, 1)
"""Files, files of the killed fetch, kills, and rounds of timing."""
AT_ONCE = 64
SPAWN = multiprocessing.get_context("spawn")


def picture(number: int) -> bytes:
    """A picture of noise that no other number has."""
    file = io.BytesIO()
    coarse = Image.fromarray(np.random.default_rng(number).integers(0, 255, (8, 8, 3), dtype=np.uint8))
    coarse.resize((64, 64), Image.Resampling.BICUBIC).save(file, "JPEG")
    return file.getvalue()


def serve(count: int, told: Connection) -> None:
    """Answer requests for `/0` and so on, and for `/asked`: the numbers of requests by path."""
    pictures, asked = {f"/{number}": picture(number) for number in range(count)}, Counter[str]()

    class Answers(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = transport

        def data_received(self, data: bytes) -> None:
            path = data.split(b" ", 2)[1].decode()
            if path == "/asked":
                content = json.dumps(asked).encode()
            else:
                asked[path] += 1
                content = pictures[path]
            head = f"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: {len(content)}\r\n\r\n"
            self.transport.write(head.encode() + content)  # type: ignore[attr-defined]

    async def main() -> None:
        server = await asyncio.get_running_loop().create_server(Answers, "127.0.0.1", 0)
        told.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(main())


@contextmanager
def server(count: int) -> Iterator[str]:
    """The beginning of the addresses of a server in another process."""
    here, there = SPAWN.Pipe()
    process = SPAWN.Process(target=serve, args=(count, there), daemon=True)
    process.start()
    yield f"http://127.0.0.1:{here.recv()}/"
    process.kill()
    process.join()


def asked(url: str) -> dict[str, int]:
    with urllib.request.urlopen(f"{url}asked") as answer:
        found: dict[str, int] = json.load(answer)
    return found


def write_table(folder: Path, url: str, count: int) -> Path:
    rows = (f"{url}{number},the number {number}\n" for number in range(count))
    (folder / "table.csv").write_text("image_url,caption\n" + "".join(rows))
    return folder / "table.csv"


def ours(table: Path, folder: Path) -> None:
    bounds = Bounds(max_bytes=1 << 25, max_pixels=1 << 20, timeout_s=60, min_bytes_per_s=1024, allow_private=True)
    settings = Settings(bounds=bounds, num_connections=AT_ONCE, per_host=AT_ONCE, max_shard_bytes=1 << 20)
    fetch(open_addresses(str(table)), folder, settings)


def bare(urls: Sequence[str]) -> None:
    async def one(session: aiohttp.ClientSession, left: list[str]) -> None:
        while left:
            async with session.get(left.pop()) as answer:
                await answer.read()

    async def main() -> None:
        left = list(urls)
        async with aiohttp.ClientSession() as session:
            await asyncio.gather(*(one(session, left) for _ in range(AT_ONCE)))

    asyncio.run(main())


def speeds(folder: Path, count: int, rounds: int) -> dict[str, float]:
    """Files a second of the processor, and of the clock, each the median of some rounds."""
    found: dict[str, list[float]] = {"impresa": [], "bare": [], "impresa, by the clock": []}
    with server(count) as url:
        table, urls = write_table(folder, url, count), [f"{url}{number}" for number in range(count)]
        for turn in range(rounds):
            start, clock = time.process_time(), time.perf_counter()
            ours(table, folder / f"shards-{turn}")
            found["impresa"].append(count / (time.process_time() - start))
            found["impresa, by the clock"].append(count / (time.perf_counter() - clock))
            start = time.process_time()
            bare(urls)
            found["bare"].append(count / (time.process_time() - start))
    return {name: statistics.median(values) for name, values in found.items()}


def noted(folder: Path) -> set[str]:
    """Paths of what the ledger has as fetched."""
    if not (folder / NAME).exists():
        return set()
    with closing(sqlite3.connect(f"file:{folder / NAME}?mode=ro", uri=True)) as ledger:
        try:
            return {f"/{url.rpartition('/')[2]}" for (url,) in ledger.execute("SELECT url FROM urls WHERE shard >= 0")}
        except sqlite3.OperationalError:  # it has no tables yet
            return set()


def num_asked_again(done: set[str], before: dict[str, int], after: dict[str, int]) -> int:
    """Of what was fetched already, the number that the server was asked for all the same."""
    return sum(after[path] > before[path] for path in done)


def killed(folder: Path, count: int, num_kills: int) -> dict[str, int]:
    """What a fetch has at its end that was killed so many times, at random moments."""
    draw, shards, again = random.Random(0), folder / "killed", 0
    done, before = set[str](), dict[str, int]()
    with server(count) as url:
        table = write_table(folder, url, count)
        for kill in range(num_kills):
            process = SPAWN.Process(target=ours, args=(table, shards))
            process.start()
            goal = count * (kill + draw.random()) / (num_kills + 1)
            while process.is_alive() and len(noted(shards)) < goal:
                time.sleep(0.005)
            process.kill()
            process.join()
            again += num_asked_again(done, before, asked(url))
            done, before = noted(shards), asked(url)
        ours(table, shards)
        after = asked(url)
        again += num_asked_again(done, before, after)
    source = open_path(DatasetConfig(), str(shards))
    rows = [source.row(number) for number in range(len(source))]  # type: ignore[attr-defined]
    held = Counter(sha256(row.cells["image"]).hexdigest() for row in rows if row.fault is None)
    served = {sha256(picture(number)).hexdigest() for number in range(count)}
    return {
        "kills": num_kills,
        "files": count,
        "fetched twice": again,
        "stored twice": sum(number - 1 for number in held.values()),
        "lost": len(served - held.keys()),
        "half-written": len(held.keys() - served) + sum(row.fault is not None for row in rows),
        "requests beside one for each": sum(after.values()) - count,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    given = command(__doc__ or "").parse_args(arguments)
    num_files, num_killed_files, num_kills, rounds = QUICK if given.quick else FULL
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        figures: dict[str, Any] = {"files_per_s": speeds(folder, num_files, rounds)}
        figures["killed"] = killed(folder, num_killed_files, num_kills)
    print(json.dumps(figures, indent=2))
    store(given.output, figures)


if __name__ == "__main__":
    main()
