"""Fetching from a server on localhost that does all that servers do; the shards are read by the source of shards."""

from __future__ import annotations

import asyncio
import gzip
import json
import resource
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("aiohttp")

from full_disk import files_of_at_most
from impresa.config.dataset import DatasetConfig
from impresa.data.fetch.download import Bounds
from impresa.data.fetch.report import Report
from impresa.data.fetch.run import Settings, fetch
from impresa.data.fetch.summary import missing_rows
from impresa.data.fetch.table import open_addresses
from impresa.data.sources import Source, open_path
from impresa.data.sources.base import Reading
from impresa.errors import CheckpointError, DataError
from pictures import photo, png
from web_server import Answer, Server, drips, endless, file, in_turn, leads_to, says, silent, web_server

BOUNDS = Bounds(max_bytes=1 << 20, max_pixels=10_000, timeout_s=20.0, min_bytes_per_s=0, allow_private=True)
SETTINGS = Settings(bounds=BOUNDS, max_tries=2, backoff_s=0.01)


@pytest.fixture
def server() -> Iterator[Server]:
    with web_server() as found:
        yield found


def table(folder: Path, rows: Iterable[dict[str, Any]]) -> Path:
    path = folder / "table.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def fetched(folder: Path, rows: Iterable[dict[str, Any]] | None = None, **changed: Any) -> Report:
    """The report of a fetch into `shards`; keywords are those of `fetch`, settings or bounds."""
    path = folder / "table.jsonl" if rows is None else table(folder, rows)
    retry = changed.pop("retry", "none")
    bounds = {name: changed.pop(name) for name in list(changed) if hasattr(BOUNDS, name)}
    settings = replace(SETTINGS, bounds=replace(BOUNDS, **bounds), **changed)
    return fetch(open_addresses(str(path)), folder / "shards", settings, retry=retry)


def opened(folder: Path, reading: Reading = Reading()) -> Source:  # noqa: B008 - frozen
    return open_path(DatasetConfig(), str(folder / "shards"), reading)


def rows_for(server: Server, *paths: str) -> list[dict[str, Any]]:
    return [{"image_url": server.url(path), "caption": f"that of {path}"} for path in paths]


def reason_of(report: Report) -> tuple[str, str]:
    """Kind and reason of the only failure."""
    (failure,) = report.failures
    return failure.status, failure.reason


def test_a_table_becomes_samples_with_its_columns(server: Server, tmp_path: Path) -> None:
    server.routes.update({f"/{number}.png": png(number) for number in range(20)})
    rows = [{"image_url": server.url(f"/{n}.png"), "text": f"the number {n}", "label": n % 3} for n in range(20)]
    report = fetched(tmp_path, rows)
    assert (report.counts.done, report.counts.num_rows_fetched, report.failures) == (20, 20, [])
    source = opened(tmp_path)
    found = {sample.captions[0]: (sample.image and sample.image.getpixel((0, 0)), sample.label) for sample in source}  # type: ignore[attr-defined]
    assert found == {f"the number {n}": ((n, 0, 7), str(n % 3)) for n in range(20)}
    assert max(server.asked.values()) == 1
    again = fetched(tmp_path)
    assert again.counts == report.counts
    assert max(server.asked.values()) == 1
    assert missing_rows(tmp_path / "shards") is None


def test_rows_of_one_address_are_fetched_once(server: Server, tmp_path: Path) -> None:
    server.routes["/a.png"] = png(1)
    asks = [("what?", "a cat"), ("where?", "here"), (None, None)]
    rows = [{"image_url": server.url("/a.png"), "question": q, "answer": a, "source": "x"} for q, a in asks]
    rows.append({"image_url": server.url("/a.png"), "caption": "a cat", "source": "y"})
    report = fetched(tmp_path, rows)
    assert server.asked == {"/a.png": 1}
    assert (report.counts.num_rows, report.counts.num_rows_fetched, report.counts.num_urls) == (4, 4, 1)
    source = opened(tmp_path, Reading(dialogues=True))
    turns = [[(t.question, t.answer) for said in source[n].dialogues for t in said.turns] for n in (0,)]
    assert turns == [asks[:2]]
    assert len(source) == 3


@pytest.mark.parametrize(
    ("answer", "status", "reason"),
    [
        (None, "permanent", "HTTP 404"),
        (says(status="410 Gone"), "permanent", "HTTP 410"),
        (says(status="403 Forbidden"), "permanent", "HTTP 403"),
        (says(png(1), "206 Partial Content"), "permanent", "HTTP 206"),
        (says(status="304 Not Modified"), "permanent", "HTTP 304"),
        (says(status="302 Found"), "permanent", "HTTP 302"),
        (says(status="500 Internal Server Error"), "passing", "HTTP 500"),
        (says(status="503 Service Unavailable"), "passing", "HTTP 503"),
        (says(status="429 Too Many Requests"), "passing", "HTTP 429"),
        (says(b"<html>sorry</html>"), "permanent", "no image of a known format"),
        (says(b"%PDF-1.4 ..."), "permanent", "no image of a known format"),
        (says(b""), "permanent", "empty file"),
        (says(png(1, 200, 200)), "permanent", "too many pixels"),
        (says(b"", Content_Length=1 << 30), "permanent", "more than 1 MiB"),
        (says(b"", Content_Length="lots"), "passing", "malformed answer"),
        (drips(png(1), 20, 0, length=5000), "passing", "answer ends early"),
        (says(png(1)[:-30]), "passing", "image ends early"),
        (drips(bytes(400), 1, 0.1), "passing", "timeout"),
        (silent, "passing", "timeout"),
        (endless, "permanent", "more than 1 MiB"),
        (leads_to("/x.png"), "permanent", "redirected in a circle"),
        (leads_to("file:///etc/passwd"), "permanent", "no http address"),
        (leads_to("ftp://127.0.0.1/x.png"), "permanent", "no http address"),
        (leads_to("http://[::1"), "permanent", "no http address"),
        (leads_to("/gone.png"), "permanent", "HTTP 404"),
    ],
)
def test_what_fails_and_for_how_long(
    server: Server, tmp_path: Path, answer: bytes | Answer | None, status: str, reason: str
) -> None:
    server.routes["/good.png"] = png(2)
    if answer is not None:
        server.routes["/x.png"] = answer
    begun = time.monotonic()
    report = fetched(tmp_path, rows_for(server, "/x.png", "/good.png"), timeout_s=1.0 if reason == "timeout" else 30.0)
    assert time.monotonic() - begun < 20
    assert reason_of(report) == (status, reason)
    assert server.asked["/x.png"] == (2 if status == "passing" else 1)
    assert (report.counts.done, len(opened(tmp_path))) == (1, 1)
    assert missing_rows(tmp_path / "shards") == "1 of 2 rows of the table are not fetched"


async def never_begins(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n")
    for number in range(10_000):
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n" if number % 2 else f"X-{number}: x\r\n".encode())
        await writer.drain()
        await asyncio.sleep(0.01)


def raw(answer: bytes) -> Answer:
    async def answers(writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        await writer.drain()

    return answers


@pytest.mark.parametrize(
    "answer",
    [
        never_begins,
        raw(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n"),
        raw(b"HTTP/1.1 200 OK\r\n" + b"".join(b"X-%d: y\r\n" % n for n in range(100_000)) + b"\r\n"),
        raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nnothing\r\n"),
        raw(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 300\r\n\r\nabc"),
        raw(b"HTTP/1.1 200 OK\r\nContent-Length: -3\r\n\r\nabc"),
        raw(b"HTTP/1.1 302 Found\r\nLocation: \xff\xfe\r\n\r\n"),
        raw(b"SSH-2.0-OpenSSH_9.6\r\n"),
        raw(b"\x16\x03\x01" * 1000),
        raw(b""),
        says(b"not gzip at all", Content_Encoding="gzip"),
        says(b"x", Content_Encoding="br"),
    ],
)
def test_servers_that_speak_no_http(server: Server, tmp_path: Path, answer: Answer) -> None:
    server.routes |= {"/x.png": answer, "/good.png": png(2)}
    begun = time.monotonic()
    report = fetched(tmp_path, rows_for(server, "/x.png", "/good.png"), timeout_s=2.0, max_tries=1)
    assert time.monotonic() - begun < 10
    assert (report.counts.done, report.counts.num_urls) == (1, 2)


def test_a_small_answer_that_unpacks_to_much_is_cut(server: Server, tmp_path: Path) -> None:
    server.routes["/x.png"] = says(gzip.compress(bytes(150 << 20), 9), Content_Encoding="gzip")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert reason_of(fetched(tmp_path, rows_for(server, "/x.png"), timeout_s=30)) == ("permanent", "more than 1 MiB")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10


def test_an_answer_longer_than_it_says_spoils_no_other(server: Server, tmp_path: Path) -> None:
    server.routes |= {f"/{n}.png": file(png(n)) + b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx" for n in range(9)}
    report = fetched(tmp_path, rows_for(server, *server.routes), per_host=1)
    assert report.counts.done == 9
    pixels = {sample.captions[0]: sample.image.getpixel((0, 0)) for sample in opened(tmp_path)}  # type: ignore[attr-defined]
    assert pixels == {f"that of /{n}.png": (n, 0, 7) for n in range(9)}


def test_a_photo_with_a_second_picture_in_it(server: Server, tmp_path: Path) -> None:
    made = BytesIO()
    photo(64, 64).save(made, "MPO", save_all=True, append_images=[photo(64, 64)])
    server.routes["/x.jpg"] = made.getvalue()
    assert fetched(tmp_path, rows_for(server, "/x.jpg")).counts.done == 1
    assert isinstance(opened(tmp_path)[0].image, Image.Image)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF"])
def test_every_format_is_read_again(server: Server, tmp_path: Path, format: str) -> None:
    made = BytesIO()
    photo(64, 64).save(made, format)
    server.routes["/x"] = made.getvalue()
    assert fetched(tmp_path, rows_for(server, "/x")).counts.done == 1
    assert isinstance(opened(tmp_path)[0].image, Image.Image)


def test_a_slow_server_is_given_up_before_its_time(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("impresa.data.fetch.download._GRACE_S", 0.2)
    server.routes["/x.png"] = drips(bytes(4000), 1, 0.05)
    begun = time.monotonic()
    report = fetched(tmp_path, rows_for(server, "/x.png"), min_bytes_per_s=1024, timeout_s=30, max_tries=1)
    assert time.monotonic() - begun < 10
    assert reason_of(report) == ("passing", "too slow")


def test_a_chain_of_redirects_has_an_end(server: Server, tmp_path: Path) -> None:
    server.routes |= {f"/{n}": leads_to(f"/{n + 1}") for n in range(20)} | {"/20": png(1)}
    report = fetched(tmp_path, rows_for(server, "/0", "/15"))
    assert report.counts.done == 1
    assert reason_of(report) == ("permanent", "redirected too often")


def test_the_type_is_that_of_the_content(server: Server, tmp_path: Path) -> None:
    made = BytesIO()
    photo(64, 64).save(made, "JPEG")
    server.routes["/x.png"] = says(made.getvalue(), Content_Type="text/html")
    assert fetched(tmp_path, rows_for(server, "/x.png")).counts.done == 1
    assert b".jpg\0" in (tmp_path / "shards" / "00000.tar").read_bytes()
    assert isinstance(opened(tmp_path)[0].image, Image.Image)


def test_the_tables_hash_is_checked(server: Server, tmp_path: Path) -> None:
    server.routes |= {"/a.png": png(1), "/b.png": png(2)}
    right, wrong = sha256(png(1)).hexdigest(), "0" * 64
    rows = rows_for(server, "/a.png", "/a.png", "/b.png")
    hashes = (right.upper(), wrong, wrong)
    report = fetched(tmp_path, [{**row, "image_sha256": word} for row, word in zip(rows, hashes, strict=True)])
    assert reason_of(report) == ("permanent", "another file than the table's sha256 tells")
    assert (report.counts.done, report.counts.num_rows_fetched, report.counts.num_rows_of_another_hash) == (1, 1, 1)


def test_what_passes_is_tried_again(server: Server, tmp_path: Path) -> None:
    refused = says(status="503 Service Unavailable")
    server.routes["/x.png"] = in_turn(refused, says(png(1)))
    server.routes["/y.png"] = in_turn(refused, refused, says(png(2)))
    report = fetched(tmp_path, [*rows_for(server, "/x.png", "/y.png", "/gone.png")])
    assert (report.counts.done, report.counts.passing, report.counts.permanent) == (1, 1, 1)
    assert fetched(tmp_path).counts.passing == 1
    assert server.asked == {"/x.png": 2, "/y.png": 2, "/gone.png": 1}
    assert fetched(tmp_path, retry="passing").counts.done == 2
    assert server.asked == {"/x.png": 2, "/y.png": 3, "/gone.png": 1}
    server.routes["/gone.png"] = png(3)
    report = fetched(tmp_path, retry="all")
    assert (report.counts.done, report.failures, report.num_tries) == (3, [], 7)
    assert len(opened(tmp_path)) == 3


def test_a_host_that_asks_to_wait_is_left_alone(server: Server, tmp_path: Path) -> None:
    times: list[float] = []

    async def once(writer: Any) -> None:
        times.append(time.monotonic())
        first = len(times) == 1
        writer.write(file(b"" if first else png(1), "429 Too Many Requests" if first else "200 OK", Retry_After=1))
        await writer.drain()

    server.routes |= {f"/{n}.png": once for n in range(5)}
    report = fetched(tmp_path, rows_for(server, *(f"/{n}.png" for n in range(5))), per_host=1)
    assert report.counts.done == 5
    assert times[1] - times[0] > 0.9


def test_a_host_that_asks_for_too_much_time_is_left_for_another_day(server: Server, tmp_path: Path) -> None:
    server.routes["/0.png"] = says(status="429 Too Many Requests", Retry_After="Fri, 31 Dec 2100 23:59:59 GMT")
    report = fetched(tmp_path, rows_for(server, *["/0.png"], *(f"/0.png?{n}" for n in range(9))), per_host=1)
    assert report.counts.passing == 10
    assert server.asked.total() == 1
    assert report.num_tries == 1


def test_bounds_on_requests_at_once(server: Server, tmp_path: Path) -> None:
    server.routes |= {f"/{n}.png": drips(png(n), 40, 0.01) for n in range(24)}
    fetched(tmp_path, rows_for(server, *(f"/{n}.png" for n in range(24))), per_host=3)
    assert server.most_open == 3


def test_nobody_answers(tmp_path: Path, server: Server) -> None:
    port = server.port + 1 if server.port < 65000 else 1
    rows = [
        {"image_url": f"http://127.0.0.{h}:{port}/{n}.png", "caption": "x"} for h in range(2, 20) for n in range(40)
    ]
    with pytest.raises(DataError, match="is the network up"):
        fetched(tmp_path, rows)
    one = tmp_path / "one"
    one.mkdir()
    report = fetched(one, rows[:40], per_host=1)
    assert [(f.reason, f.status) for f in report.failures] == [
        ("host does not answer", "passing"),
        ("no connection", "passing"),
    ]
    assert report.num_tries < 40


def test_private_addresses_are_refused(server: Server, tmp_path: Path) -> None:
    server.routes |= {"/x.png": png(1)}
    hosts = ("127.0.0.1", "localhost", "127.1", "2130706433", "0x7f000001", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0")
    rows = [{"image_url": server.url("/x.png", host), "caption": "x"} for host in hosts]
    report = fetched(tmp_path, rows, allow_private=False)
    assert {(failure.status, failure.reason) for failure in report.failures} == {("permanent", "private address")}
    assert report.counts.permanent == len(hosts)
    assert not server.asked


def test_a_public_name_that_leads_to_a_private_address(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name of the first hop is taken for public, and everything behind it is looked at as usual."""
    from impresa.data.fetch import addresses

    server.routes |= {"/x.png": leads_to(server.url("/secret.png", "127.0.0.1")), "/secret.png": png(1)}
    server.routes |= {"/y.png": leads_to(server.url("/secret.png", "localhost"))}
    real = addresses.is_public
    resolved: list[str] = []

    class Names(addresses.PublicResolver):
        async def resolve(self, host: str, port: int = 0, family: Any = 0) -> Any:
            resolved.append(host)
            if host != "pictures.example":
                return await super().resolve(host, port, family)
            return [{"hostname": host, "host": "127.0.0.1", "port": port, "family": 2, "proto": 6, "flags": 0}]

    monkeypatch.setattr("impresa.data.fetch.download.PublicResolver", Names)
    assert not real("127.0.0.1")
    rows = [{"image_url": server.url(path, "pictures.example"), "caption": "x"} for path in ("/x.png", "/y.png")]
    report = fetched(tmp_path, rows, allow_private=False)
    assert reason_of(report) == ("permanent", "private address")
    assert report.counts.permanent == 2
    assert server.asked == {"/x.png": 1, "/y.png": 1}
    assert resolved.count("pictures.example") == 1  # once, and what it gave is what was dialled


def test_rows_without_an_address_are_counted(server: Server, tmp_path: Path) -> None:
    server.routes["/x.png"] = png(1)
    rows = [*rows_for(server, "/x.png"), {"image_url": None, "caption": "x"}, {"caption": "y"}, {"image_url": "a b"}]
    report = fetched(tmp_path, rows)
    assert report.counts.num_rows_without_address == 2
    assert reason_of(report) == ("permanent", "no http address")
    assert missing_rows(tmp_path / "shards") == "3 of 4 rows of the table are not fetched"


def test_shards_have_a_bounded_size(server: Server, tmp_path: Path) -> None:
    server.routes |= {f"/{n}.png": png(n) for n in range(12)}
    fetched(tmp_path, rows_for(server, *server.routes), max_shard_bytes=8_000)
    sizes = [path.stat().st_size for path in (tmp_path / "shards").glob("*.tar")]
    assert len(sizes) > 2
    assert max(sizes) <= 8_000
    assert len(opened(tmp_path)) == 12


@pytest.mark.parametrize("most_bytes", [90_000, 800_000])  # of the ledger's files, of a shard
def test_a_full_disk_costs_nothing_but_the_wait(server: Server, tmp_path: Path, most_bytes: int) -> None:
    generator = np.random.default_rng(0)
    for number in range(40):
        made = BytesIO()
        Image.fromarray(generator.integers(0, 255, (99, 99, 3), dtype=np.uint8)).save(made, "PNG")
        server.routes[f"/{number}.png"] = made.getvalue()
    with files_of_at_most(most_bytes), pytest.raises(OSError, match=r"too large|error") as caught:
        fetched(tmp_path, rows_for(server, *server.routes))
    assert str(tmp_path / "shards") in str(caught.value.filename)
    before = server.asked.total()
    assert fetched(tmp_path).counts.done == 40
    assert server.asked.total() <= max(before, 40) + SETTINGS.per_host  # those under way, and no other
    assert len({sample.captions for sample in opened(tmp_path)}) == 40  # type: ignore[attr-defined]


def test_other_folders_and_tables_are_refused(server: Server, tmp_path: Path) -> None:
    server.routes["/x.png"] = png(1)
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "mine.txt").write_text("x")
    with pytest.raises(DataError, match="holds other files"):
        fetched(tmp_path, rows_for(server, "/x.png"))
    (tmp_path / "shards" / "mine.txt").unlink()
    fetched(tmp_path)
    with pytest.raises(DataError, match="another table"):
        fetched(tmp_path, rows_for(server, "/x.png", "/y.png"))
    (tmp_path / "shards" / "fetch.sqlite").write_bytes(b"no ledger" * 1000)
    with pytest.raises(DataError, match="ledger cannot be used"):
        fetched(tmp_path)


def test_one_process_at_a_time(server: Server, tmp_path: Path) -> None:
    from impresa.run_dir.lock import locked

    with locked(tmp_path / "shards"), pytest.raises(CheckpointError, match="is being fetched"):
        fetched(tmp_path, rows_for(server, "/x.png"))


def test_a_shard_that_was_deleted_is_fetched_again(server: Server, tmp_path: Path) -> None:
    server.routes |= {f"/{n}.png": png(n) for n in range(12)}
    fetched(tmp_path, rows_for(server, *server.routes), max_shard_bytes=8_000)
    (tmp_path / "shards" / "00001.tar").unlink()
    assert fetched(tmp_path).counts.done == 12
    assert 12 < server.asked.total() < 24
    assert len({sample.captions for sample in opened(tmp_path)}) == len(opened(tmp_path)) == 12  # type: ignore[attr-defined]
