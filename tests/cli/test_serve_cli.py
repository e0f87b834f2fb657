"""`impresa serve`: how it starts and ends, its workers, and refusals in one line."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import openai
import pytest

from impresa.cli import serve
from impresa.cli.main import main
from tiny_run import finished_run

REFUSED = {
    "nowhere": "nowhere: no such folder; give the run directory that `impresa train` printed",
    "run --api-key-file none": "--api-key-file: none: No such file or directory; name a file with a key",
    "run --api-key-file run": "--api-key-file: run: Is a directory; name a file with a key",
    "run --api-key-file empty": "--api-key-file: empty: must hold one line, the key, of ASCII characters",
    "run --api-key-file lines": "--api-key-file: lines: must hold one line",
    "run --api-key-file binary": "--api-key-file: binary: is no text",
    "run --port {port}": "--port: {port} on 127.0.0.1 cannot be had (address already in use); choose another",
    "run --port 70000": "--port: 70000 is not within 0 to 65535; choose another",
    "run --host 192.0.2.1": "--port: 8000 on 192.0.2.1 cannot be had (cannot assign requested address)",
    "run --host no.such.name.invalid": "--host: no.such.name.invalid is no address of this machine",
    "run --allow-urls https://a.b/": "--allow-urls: https://a.b/ is no name of a host; ",
    "run --allow-urls *": "--allow-urls: * is no name of a host; ",
    "run --allow-urls ,": "--allow-urls: names no host; ",
    "run --device no --port 0": "--device: no cannot be used here",
    "run --workers 0": "impresa serve: argument --workers: 0 is not a whole number from 1",
    "run --max-wait-ms -1": "impresa serve: argument --max-wait-ms: -1 is not a number from 0",
    "squares": "squares: is no run directory, it has no config.yaml; give one that `impresa train` made",
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").symlink_to(finished_run())
    (tmp_path / "squares").mkdir()
    for name, content in {"empty": b"\n", "lines": b"one\ntwo\n", "binary": b"\xff\xfe", "key": b" secret \n"}.items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


@pytest.fixture(autouse=True)
def _same_handler() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(("line", "fault"), REFUSED.items())
@pytest.mark.usefixtures("here")
def test_refusals_are_one_line(line: str, fault: str, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["serve", *line.format(port=port).split()]) == 2
    errors = [text for text in capsys.readouterr().err.splitlines() if "may use this server" not in text]
    assert len(errors) == 1
    assert errors[0].startswith(fault.format(port=port))


def test_a_key_may_begin_with_the_mark_of_an_editor(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("secret\r\n", encoding="utf-8-sig")
    assert serve._key_of(tmp_path / "key") == "secret"


@pytest.mark.usefixtures("here")
def test_a_missing_extra_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(serve, "find_spec", lambda name: None if name == "uvicorn" else find(name))
    assert main(["serve", "run"]) == 2
    assert capsys.readouterr().err == "serve: needs uvicorn; pip install 'impresa[serve]' installs it\n"


@pytest.mark.usefixtures("here")
def test_all_the_world_without_a_key_is_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "nowhere", "--host", "0.0.0.0"]) == 2
    first = capsys.readouterr().err.splitlines()[0]
    assert first == "--host: anybody who can reach 0.0.0.0 may use this server; --api-key-file asks them for a key"


@contextmanager
def started(*options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server's process and its address."""
    command = [sys.executable, "-m", "impresa", "serve", "run", "--port", "0", "--device", "cpu", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        try:
            assert line.startswith("run at http://127.0.0.1:"), line
            yield process, line.split()[2]
        finally:
            if process.poll() is None:
                process.kill()


def test_one_process_from_its_start_to_sigterm(here: Path) -> None:
    assert here
    with started("--api-key-file", "key") as (process, url):
        with openai.OpenAI(base_url=f"{url}/v1", api_key="secret") as client:
            assert len(client.embeddings.create(model="run", input="a").data[0].embedding) == 16
        assert httpx.get(f"{url}/v1/models", timeout=120).status_code == 401
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""


def test_workers_come_back_and_ctrl_c_ends_all(here: Path) -> None:
    assert here
    with started("--workers", "2") as (process, url), httpx.Client(base_url=url, timeout=120) as client:
        before = children_of(process.pid)
        assert len(before) == 2
        assert client.get("/ready").status_code == 200
        os.kill(before[0], signal.SIGKILL)
        end = time.monotonic() + 300
        while len(set(children_of(process.pid)) - {before[0]}) < 2:
            assert time.monotonic() < end
            time.sleep(0.1)
        for _ in range(20):
            assert httpx.post(f"{url}/v1/embeddings", json={"input": "a"}, timeout=120).status_code == 200
        while 'route="/v1/embeddings",status="200"} 20.0' not in client.get("/metrics").text:
            assert time.monotonic() < end  # an answer is counted after it was sent
        process.send_signal(signal.SIGINT)
        assert process.wait(120) == 130
        assert process.stderr is not None
        lines = process.stderr.read().splitlines()
        assert lines == [f"worker {before[0]} has ended and is replaced", "interrupted"]
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}/health")


def children_of(pid: int) -> list[int]:
    """Worker processes; the helper of `multiprocessing` that looks after shared things is none."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            command = (stat.parent / "cmdline").read_text()
        except OSError:
            continue
        if parent == pid and "spawn_main" in command:
            found.append(int(stat.parent.name))
    return sorted(found)
