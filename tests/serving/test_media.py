"""Pictures and sounds of requests: what is fetched, what is checked before it is decoded."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from pictures import png
from served import app_with, client_of, data_url, embedding_model, fault_of, hearing_model
from sounds_on_disk import wav
from web_server import Server, endless, file, leads_to, web_server


def ask(client: Any, url: str, kind: str = "image") -> Any:
    return client.post("/v1/embeddings", json={"input": [url], "modality": kind})


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    with client_of(app_with(hearing_model())) as client:
        yield client


def bomb(side: int) -> bytes:
    """A PNG whose header promises so many pixels a side, and which holds few bytes."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_bombs_are_refused_by_their_header(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("impresa.serving.embedder.pixels_of", lambda *_: pytest.fail("it was decoded"))
    for side in (7_000, 30_000, 2**31 - 1):
        answer = ask(client, data_url(bomb(side)))
        assert answer.status_code == 400
        assert fault_of(answer)["message"] == "input[0]: the image has more than 40000000 pixels"


@pytest.mark.parametrize("form", ["ICO", "TGA", "PCX", "EPS", "PDF"])
def test_formats_that_have_no_name_are_refused(client: Any, form: str) -> None:
    from PIL import Image

    content = io.BytesIO()
    Image.new("RGB", (16, 16), "red").save(content, form)
    answer = ask(client, data_url(content.getvalue()))
    assert answer.status_code == 400
    assert fault_of(answer)["message"].startswith("input[0]: is no image that can be read (JPEG, PNG, ")


@pytest.mark.parametrize("content", [b"RIFF\x00\x00\x00\x00WAVE", b"OggS" + b"\x00" * 50, b"hello", wav(440)[:30], b""])
def test_sounds_that_are_none(client: Any, content: bytes) -> None:
    answer = ask(client, data_url(content, "audio/wav"), "audio")
    assert answer.status_code == 400
    fault_of(answer)


def test_formats_of_sounds_go_by_their_first_bytes(client: Any) -> None:
    import soundfile

    for form, status in (("WAV", 200), ("FLAC", 200), ("OGG", 200), ("MP3", 200), ("AU", 400), ("CAF", 400)):
        content = io.BytesIO()
        soundfile.write(content, torch.zeros(8000).numpy(), 16_000, format=form)
        assert ask(client, data_url(content.getvalue(), "audio/x"), "audio").status_code == status, form


@pytest.fixture(scope="module")
def files() -> Iterator[Server]:
    routes: dict[str, Any] = {
        "/good.png": png(37, 20, 20),
        "/text": file(b"hello", Content_Type="text/plain"),
        "/endless": endless,
        "/on": leads_to("/good.png"),
        "/private": leads_to("http://192.168.0.1/x.png"),
        "/circle": leads_to("/circle"),
    }
    with web_server(routes) as server:
        routes["/elsewhere"] = leads_to(f"http://localhost:{server.port}/good.png")
        server.routes["/elsewhere"] = routes["/elsewhere"]
        yield server


def test_pictures_of_allowed_hosts_are_fetched(files: Server) -> None:
    app = app_with(embedding_model(), allow_urls=("127.0.0.1",), allow_private=True)
    with client_of(app) as client:
        wanted = embedding_model().encode_image(png(37, 20, 20))
        for path in ("/good.png", "/on"):
            found = ask(client, files.url(path)).json()["data"][0]["embedding"]
            torch.testing.assert_close(torch.tensor(found), wanted, atol=1e-5, rtol=0)
        for path, reason in (
            ("/missing", "HTTP 404"),
            ("/endless", "more than 16 MiB"),
            ("/circle", "redirected in a circle"),
            ("/elsewhere", "host not allowed"),
            ("/private", "host not allowed"),
        ):
            answer = ask(client, files.url(path))
            assert answer.status_code == 400
            assert f"cannot be fetched ({reason})" in fault_of(answer)["message"]
        assert "is no image" in fault_of(ask(client, files.url("/text")))["message"]
        asked = files.asked["/good.png"]
        assert "host not allowed" in ask(client, files.url("/good.png", "localhost")).text
        assert files.asked["/good.png"] == asked


def test_private_addresses_are_not_talked_to(files: Server) -> None:
    """Even where the name of the host is allowed: what it stands for decides."""
    hosts = ("127.0.0.1", "localhost", "2130706433", "169.254.169.254")
    with client_of(app_with(embedding_model(), allow_urls=hosts)) as client:
        asked = sum(files.asked.values())
        for host in hosts:
            answer = ask(client, files.url("/good.png", host))
            assert answer.status_code == 400
            assert fault_of(answer)["code"] == "invalid_url"
        assert sum(files.asked.values()) == asked


def test_bare_base64_is_read_where_nothing_else_can_be_meant(client: Any) -> None:
    content = base64.b64encode(png(37, 20, 20)).decode()
    assert ask(client, content).status_code == 200
    assert ask(client, f"data:;base64,{content}").status_code == 200
    assert ask(client, f"DATA:image/PNG;BASE64,{content}").status_code == 200
    assert ask(client, f"data:image/png;charset=x;base64,{content}").status_code == 200


def test_base64_may_be_broken_into_lines_and_lack_its_end(client: Any) -> None:
    content = png(37, 20, 20)
    assert len(content) % 3, "its base64 has an end that can be missing"
    lines, plain = base64.encodebytes(content).decode(), base64.b64encode(content).decode()
    assert lines.count("\n") > 1
    wanted = ask(client, f"data:image/png;base64,{plain}").json()["data"]
    bare = (lines, lines.replace("\n", "\r\n"))
    for text in (*bare, f" {plain}\n", plain.rstrip("="), lines.rstrip("=\n")):
        assert ask(client, f"data:image/png;base64,{text}").json()["data"] == wanted
    assert all(ask(client, text).json()["data"] == wanted for text in bare)
    for text in (plain[:-3], f"{plain}====", f"{plain[:8]}-_{plain[10:]}", f"{plain[:8]}={plain[9:]}", "a b@c"):
        fault = fault_of(ask(client, f"data:image/png;base64,{text}"))
        assert "input[0]: holds no base64" in fault["message"]
