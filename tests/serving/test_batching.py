"""Requests that are computed together: the same values as alone, each to its own; and what happens to those that leave,
wait too long, or are too many."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
import pytest
from torch import Tensor

from impresa.serving.settings import Limits
from impresa.tasks.alignment.model import AlignmentModel
from served import app_with, client_of, connected, data_url, embedding_model, fault_of, hearing_model, picture, served
from sounds_on_disk import wav
from waiting import wait_until


@dataclass
class Held:
    """A text encoder that waits until it is let go."""

    go: threading.Event = field(default_factory=threading.Event)
    begun: threading.Event = field(default_factory=threading.Event)
    sizes: list[int] = field(default_factory=list)
    """Of the batches that it has seen."""


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[Held]:
    found, embed = Held(), AlignmentModel.embed_text

    def wait(self: Any, ids: Tensor, mask: Tensor) -> Tensor:
        found.sizes.append(len(ids))
        found.begun.set()
        found.go.wait(120)
        return embed(self, ids, mask)

    monkeypatch.setattr(AlignmentModel, "embed_text", wait)
    yield found
    found.go.set()


def ask(url: str, text: str, **options: Any) -> httpx.Response:
    return httpx.post(f"{url}/v1/embeddings", json={"input": text}, **{"timeout": 120, **options})


def test_values_and_order_are_those_of_single_requests() -> None:
    bodies: list[dict[str, Any]] = []
    for number in range(36):
        kinds = {"text": f"a {'red ' * (number % 7)}star {number}", "image": picture(number)}
        kinds["audio"] = data_url(wav(200 + 10 * number, 0.1 + number % 3 / 20), "audio/wav")
        names = list(kinds)[number % 3 :][: 1 + number % 2]
        bodies.append({"input": [{name: kinds[name]} for name in names]})
    app = app_with(hearing_model(), Limits(max_wait_ms=100, batch_size=8))
    with client_of(app) as client, ThreadPoolExecutor(36) as threads:

        def rows(body: dict[str, Any]) -> np.ndarray:
            answer = client.post("/v1/embeddings", json=body)
            assert answer.status_code == 200, answer.text
            return np.array([row["embedding"] for row in answer.json()["data"]])

        together = list(threads.map(rows, bodies))
        num_batches = sum_of(client.get("/metrics").text, "impresa_batch_inputs_count")
        assert num_batches < len(bodies) / 2
        for body, found in zip(bodies, together, strict=True):
            np.testing.assert_allclose(found, rows(body), atol=1e-5)


def head(body: bytes) -> bytes:
    """What goes before the body of a request for an embedding."""
    lines = ("POST /v1/embeddings HTTP/1.1", "Host: localhost", "Content-Type: application/json")
    return "\r\n".join((*lines, f"Content-Length: {len(body)}", "", "")).encode()


def waiting_at(url: str) -> float:
    return sum_of(httpx.get(f"{url}/metrics", timeout=60).text, "impresa_waiting_inputs")


def sum_of(metrics: str, name: str) -> float:
    return sum(float(line.rpartition(" ")[2]) for line in metrics.splitlines() if line.startswith(name))


def test_who_leaves_takes_the_work_along(held: Held) -> None:
    with served(app_with(embedding_model(), Limits(max_wait_ms=0))) as url, ThreadPoolExecutor(2) as threads:
        first = threads.submit(ask, url, "first")
        assert held.begun.wait(60)
        with connected(url) as client:
            client.sendall(head(b'{"input": "leaves"}') + b'{"input": "leaves"}')
            wait_until(lambda: waiting_at(url) == 2)
        wait_until(lambda: waiting_at(url) == 1)
        held.go.set()
        assert first.result().status_code == 200
        assert ask(url, "last").status_code == 200
        metrics = httpx.get(f"{url}/metrics", timeout=60).text
    assert sum(held.sizes) == 2
    assert 'route="/v1/embeddings",status="499"} 1.0' in metrics


def test_a_flood_gets_429_and_the_rest_is_answered(held: Held) -> None:
    limits = Limits(max_wait_ms=0, queue=4, batch_size=2)
    with served(app_with(embedding_model(), limits)) as url, ThreadPoolExecutor(24) as threads:
        asked = [threads.submit(ask, url, f"text {number}") for number in range(24)]
        wait_until(lambda: sum(one.done() for one in asked) == 20)
        assert httpx.get(f"{url}/health", timeout=60).status_code == 200
        held.go.set()
        answers = [one.result() for one in asked]
        good = [answer for answer in answers if answer.status_code == 200]
        refused = [answer for answer in answers if answer.status_code == 429]
        assert (len(good), len(refused)) == (4, 20)
        assert all(answer.headers["retry-after"] == "1" for answer in refused)
        assert fault_of(refused[0])["code"] == "rate_limit_exceeded"
        assert ask(url, "after").status_code == 200


def test_what_takes_too_long_gets_504_and_what_waits_too_long_503(held: Held) -> None:
    app = app_with(embedding_model(), Limits(max_wait_ms=0, timeout_s=2))
    with served(app) as url, ThreadPoolExecutor(2) as threads:
        first = threads.submit(ask, url, "first")
        assert held.begun.wait(60)
        second = threads.submit(ask, url, "second")
        answers = first.result(), second.result()
        assert [answer.status_code for answer in answers] == [504, 503]
        assert [fault_of(answer)["code"] for answer in answers] == ["timeout", "overloaded"]
        assert "retry-after" in answers[1].headers
        held.go.set()
        assert ask(url, "after").status_code == 200
    assert sum(held.sizes) == 2


def test_a_body_that_does_not_come_gets_408() -> None:
    with served(app_with(embedding_model(), Limits(body_timeout_s=0.2))) as url, connected(url) as client:
        client.sendall(head(b'{"input": "a"}') + b'{"input": ')
        answer = http.client.HTTPResponse(client)
        answer.begin()
        fault_of(httpx.Response(answer.status, content=answer.read()))
        assert answer.status == 408


def test_an_input_that_fails_takes_no_other_along(monkeypatch: pytest.MonkeyPatch) -> None:
    embed = AlignmentModel.embed_text

    def fail(self: Any, ids: Tensor, mask: Tensor) -> Tensor:
        if (mask.sum(dim=1) > 20).any():
            raise RuntimeError("out of memory at /secret/path")
        return embed(self, ids, mask)

    monkeypatch.setattr(AlignmentModel, "embed_text", fail)
    app = app_with(embedding_model(), Limits(max_wait_ms=200))
    with client_of(app) as client, ThreadPoolExecutor(4) as threads:
        texts = ["a", "b", "poison " * 30, "c"]
        answers = list(threads.map(lambda text: client.post("/v1/embeddings", json={"input": text}), texts))
    assert [answer.status_code for answer in answers] == [200, 200, 500, 200]
    assert "secret" not in answers[2].text


def test_not_ready_at_the_end() -> None:
    app = app_with(embedding_model())
    with client_of(app) as client:
        assert client.get("/ready").status_code == 200
        app.state.serving.is_ready = False
        answer = client.get("/ready")
        assert answer.status_code == 503
        fault_of(answer)
