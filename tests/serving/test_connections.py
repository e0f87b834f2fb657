"""Connections on which nothing happens: they are closed, so that nobody can hold all that there are."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import suppress

import httpx
import pytest

from impresa.serving import run
from impresa.serving.settings import Limits
from served import app_with, embedding_model, served


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "_IDLE_S", 0.3)
        patch.setattr(run, "_LOOK_TICKS", 1)
        with served(app_with(embedding_model(), Limits(max_wait_ms=0))) as address:
            yield address


def connected(url: str) -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    found = socket.socket()
    found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    found.settimeout(20)
    found.connect((host, int(port)))
    return found


@pytest.mark.parametrize("begin", [b"", b"G", b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\n"])
def test_who_sends_no_request_is_let_go(url: str, begin: bytes) -> None:
    with connected(url) as client:
        client.sendall(begin)
        assert client.recv(100) == b""


def test_who_reads_no_answer_is_let_go(url: str) -> None:
    body = json.dumps({"texts": ["\N{BLACK STAR}" * 1000] * 400}).encode()  # which the answer repeats
    head = f"POST /v2/embed HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
    with connected(url) as client:
        client.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + body)
        assert client.recv(10, socket.MSG_PEEK)  # the answer has begun, and has no place here
        time.sleep(1)
        num_bytes = 0
        with suppress(ConnectionError):
            while num_bytes < len(body) and (content := client.recv(1 << 16)):
                num_bytes += len(content)
        assert num_bytes < len(body)


def test_who_goes_on_asking_is_not(url: str) -> None:
    with httpx.Client(base_url=url) as client:
        places = set()
        for _ in range(6):
            answer = client.get("/health")
            places.add(answer.extensions["network_stream"].get_extra_info("client_addr"))
            time.sleep(0.15)
        assert len(places) == 1
