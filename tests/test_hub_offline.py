"""Without a network a model that is not here is one line after a moment, and one that is in the cache is read."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from huggingface_hub import close_session, constants

from impresa import hub
from impresa.errors import ConfigError

NAME = "nobody/nothing"


@pytest.fixture(autouse=True)
def _online(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The hub's library as if nobody had forbidden it to ask; what it is asked stays on this machine."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    close_session()
    hub._answers.cache_clear()
    yield
    close_session()
    hub._answers.cache_clear()


@pytest.fixture
def silent() -> Iterator[str]:
    """A server that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def refusal() -> str:
    with pytest.raises(ConfigError) as caught:
        hub.read_config("vision_encoder.backbone", NAME)
    (line,) = caught.value.lines
    return line


def test_a_hub_that_is_silent_or_away_is_one_line_after_a_moment(
    silent: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert hub._PATIENCE_S <= 2
    monkeypatch.setattr(hub, "_PATIENCE_S", 0.5)
    for endpoint in (silent, "http://127.0.0.1:9"):
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        hub._answers.cache_clear()
        started = time.monotonic()
        line = refusal()
        assert time.monotonic() - started < 30  # the library would go on for a minute
        assert f"and {endpoint} does not answer; where there is a network, `hf download {NAME}` there" in line
        assert line.endswith("here and set HF_HUB_OFFLINE=1")
        assert capfd.readouterr().err == ""
        assert constants.HF_HUB_OFFLINE is False  # it may be there again later


def test_the_user_s_own_patience_counts(silent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", silent)
    monkeypatch.setenv("HF_HUB_ETAG_TIMEOUT", "1")
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.1)
    monkeypatch.setattr(hub, "_PATIENCE_S", 600)
    started = time.monotonic()
    refusal()
    assert time.monotonic() - started < 60


def test_a_hub_that_was_told_not_to_be_asked_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "Thread", lambda **_: pytest.fail("the hub was asked"))
    assert "HF_HUB_OFFLINE forbids asking the hub" in refusal()


@pytest.mark.parametrize(("status", "answers"), [(200, True), (404, True), (407, False), (502, False)])
def test_only_an_answer_of_the_hub_itself_counts(status: int, answers: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            return

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setattr(hub, "_PATIENCE_S", 60)
        assert hub._answers(0) is answers
