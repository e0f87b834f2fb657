"""Connections on which nothing happens: they are closed, so that nobody can hold all that there are."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from impresa.serving import run
from impresa.serving.settings import Limits
from served import app_with, connected, embedding_model, served
from waiting import wait_until


@dataclass
class Watch:
    """The server's clock, which stands still unless it is set on."""

    now: float = 0.0
    looked: float = 0.0
    """What it showed when the server last looked for silent connections."""
    num_open: int = 0
    """How many connections were open then."""


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    found, look = Watch(), run._Server._close_silent

    def close_silent(self: run._Server) -> None:
        now = found.now
        look(self)
        found.looked, found.num_open = now, len(self.server_state.connections)

    monkeypatch.setattr(run._Server, "_close_silent", close_silent)
    monkeypatch.setattr(run, "_LOOK_TICKS", 1)
    monkeypatch.setattr(run, "time", SimpleNamespace(monotonic=lambda: found.now))
    return found


@pytest.fixture
def client(watch: Watch) -> Iterator[socket.socket]:
    """A connection to a server whose clock is `watch`."""
    assert watch.now == 0
    with served(app_with(embedding_model(), Limits(max_wait_ms=0))) as url, connected(url) as found:
        yield found


def let_go(watch: Watch) -> bool:
    """Set the clock on, and say whether the connection was found closed."""
    watch.now += run._IDLE_S + 1
    wait_until(lambda: watch.looked == watch.now)
    return watch.num_open == 0


@pytest.mark.parametrize("begin", [b"", b"G", b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\n"])
def test_who_sends_no_request_is_let_go(client: socket.socket, watch: Watch, begin: bytes) -> None:
    client.sendall(begin)
    wait_until(lambda: watch.num_open == 1)
    wait_until(lambda: let_go(watch))
    assert client.recv(100) == b""


def test_who_reads_no_answer_is_let_go(client: socket.socket, watch: Watch) -> None:
    body = json.dumps({"texts": ["\N{BLACK STAR}" * 1000] * 400}).encode()  # which the answer repeats
    head = f"POST /v2/embed HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
    client.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + body)
    assert client.recv(10, socket.MSG_PEEK)  # the answer has begun, and has no place here
    wait_until(lambda: let_go(watch))
    num_bytes = 0
    with suppress(ConnectionError):
        while num_bytes < len(body) and (content := client.recv(1 << 16)):
            num_bytes += len(content)
    assert num_bytes < len(body)


def test_who_goes_on_asking_is_not(client: socket.socket, watch: Watch) -> None:
    for _ in range(6):
        client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        answer = http.client.HTTPResponse(client)
        answer.begin()
        assert answer.status == 200
        answer.read()
        watch.now += run._IDLE_S * 2 / 3
        wait_until(lambda: watch.looked == watch.now)
    wait_until(lambda: let_go(watch))
    assert client.recv(100) == b""
