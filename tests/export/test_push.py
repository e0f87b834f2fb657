"""`impresa push` against a hub of our own: a server on this machine that the hub's own client talks to."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

import impresa
from impresa.cli.main import main
from tiny_run import finished_run
from untrained_run import BARE, untrained

GOOD = "Bearer hf_good"


class Hub(ThreadingHTTPServer):
    """Keeps the files of one commit, from a token that it knows."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.created: dict[str, Any] = {}


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self, content: Any, status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_HEAD(self) -> None:
        self.answer({})

    def do_GET(self) -> None:
        self.answer({"id": "me/shapes", "sha": "0" * 40, "siblings": []})

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length")
        body = self.rfile.read(int(length)) if length else self.chunks()
        if self.headers.get("Authorization") != GOOD:
            self.answer({"error": "Invalid credentials"}, 401)
        elif self.path == "/api/repos/create":
            self.server.created = json.loads(body)
            self.answer({"url": f"http://{self.headers['Host']}/me/shapes", "name": "me/shapes"})
        elif self.path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            paths = [file["path"] for file in json.loads(body)["files"]]
            self.answer({"files": [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in paths]})
        else:
            for line in body.decode().splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    self.server.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            self.answer({"commitUrl": "https://huggingface.co/me/shapes/commit/1", "commitOid": "1", "success": True})

    def chunks(self) -> bytes:
        found = b""
        while size := int(self.rfile.readline(), 16):
            found += self.rfile.read(size)
            self.rfile.readline()
        return found


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    from huggingface_hub import constants

    server = Hub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("impresa.hub._answers", lambda minute: True)
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    yield server
    server.shutdown()
    server.server_close()


def test_a_run_is_sent_whole_and_can_be_used(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["push", str(finished_run()), "me/shapes", "--licence", "apache-2.0", "--private"]) == 0
    assert capsys.readouterr().out.startswith("http")
    assert hub.created["visibility"] == "private" or hub.created["private"]
    for name, content in hub.files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    impresa.load(tmp_path, "cpu").encode_text("a red circle")
    _, front, body = hub.files["README.md"].decode().split("---\n", 2)
    assert yaml.safe_load(front)["license"] == "apache-2.0"
    assert "impresa" in yaml.safe_load(front)["tags"]
    assert "## Evaluation" in body
    assert "| Retrieval" in body
    assert "## Limits" in body
    assert "16 x 16 pixels" in body
    assert 'impresa.load("shapes")' in body
    assert "`hf download me/shapes --local-dir shapes` brings the files there" in body


def test_a_dry_run_prints_all_and_sends_nothing(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["push", str(finished_run()), "me/shapes", "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert told.startswith("would send to me/shapes (public if it is new):\n")
    assert "model.safetensors" in told
    assert "No licence is named" in told
    assert not hub.created
    assert not hub.files


def test_open_clip_finds_its_tokenizer_in_the_repository(hub: Hub, tmp_path: Path) -> None:
    run = untrained(tmp_path / "run", *BARE)
    assert main(["push", str(run), "me/shapes", "--to", "open_clip"]) == 0
    described = json.loads(hub.files["open_clip_config.json"])
    assert described["model_cfg"]["text_cfg"]["hf_tokenizer_name"] == "me/shapes"
    assert "It was not evaluated" in hub.files["README.md"].decode()
    assert 'open_clip.get_tokenizer("hf-hub:me/shapes")' in hub.files["README.md"].decode()


@pytest.mark.parametrize(
    ("repo", "token", "line"),
    [
        (
            "me/shapes",
            "hf_bad",
            "me/shapes: the hub does not know the token; log in by `hf auth login`, or set HF_TOKEN",
        ),
        ("no name", "hf_good", "REPO: no name is no name of a repository ("),
        ("shapes", "hf_good", "REPO: shapes has no owner; give OWNER/NAME"),
    ],
)
def test_what_the_hub_refuses_is_one_line(
    repo: str, token: str, line: str, hub: Hub, request: pytest.FixtureRequest
) -> None:
    request.getfixturevalue("monkeypatch").setenv("HF_TOKEN", token)
    capsys: pytest.CaptureFixture[str] = request.getfixturevalue("capsys")
    assert main(["push", str(finished_run()), repo]) == 2
    told = capsys.readouterr().err
    assert told.startswith(line)
    assert told.count("\n") == 1
    assert not hub.files


def test_a_licence_is_named_as_on_the_hub(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["push", str(finished_run()), "me/shapes", "--licence", "Apache 2.0"]) == 2
    assert capsys.readouterr().err.startswith("--licence: Apache 2.0 is no name of a licence; give its name on the hub")
    assert not hub.created


def test_without_a_network_nothing_is_tried(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("impresa.hub._answers", lambda minute: False)
    assert main(["push", str(finished_run()), "me/shapes"]) == 2
    told = capsys.readouterr().err
    assert "does not answer; --dry-run shows what would be sent" in told
    assert told.count("\n") == 1
    assert not hub.created


def test_a_run_that_is_none_is_refused_before_anything(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["push", "nowhere", "me/shapes"]) == 2
    assert capsys.readouterr().err.startswith("RUN: nowhere does not exist; ")
