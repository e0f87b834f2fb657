"""Everything that a server refuses: with OpenAI's error object, in a sentence, and nothing of its insides."""

from __future__ import annotations

import gzip
import json
import random
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from impresa.serving.settings import Limits
from served import app_with, client_of, data_url, embedding_model, fault_of, picture, served, talking_model
from some_index import indexed, table
from tiny_run import finished_run

JSON = {"Content-Type": "application/json"}
FORMS: dict[str, list[dict[str, Any]]] = {
    "/v1/embeddings": [
        {"model": "tiny", "input": ["a", "b"], "encoding_format": "base64", "dimensions": 4, "user": "me"},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": picture(1)}}]}]},
        {"input": [picture(1)], "modality": "image"},
        {"input": [{"text": "a"}, {"image": picture(1)}], "normalized": True, "embedding_type": "float"},
    ],
    "/v2/embed": [
        {"model": "tiny", "texts": ["a"], "input_type": "x", "embedding_types": ["float"], "output_dimension": 4},
        {"inputs": [{"content": [{"type": "text", "text": "a"}]}]},
    ],
    "/v1/multimodalembeddings": [
        {"inputs": [{"content": [{"type": "image_base64", "image_base64": picture(1)}]}], "truncation": True}
    ],
}
IMAGE = {"type": "image_url", "image_url": {"url": picture(1)}}
CHAT = {
    "model": "tiny",
    "messages": [
        {
            "role": "user",
            "content": [{"type": "image_url", "image_url": {"url": picture(1)}}, {"type": "text", "text": "a"}],
        }
    ],
    "max_tokens": 1,
    "temperature": 0.5,
    "stream": False,
    "stop": ["x"],
    "seed": 1,
}


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    with client_of(app_with(embedding_model(), Limits(max_wait_ms=0))) as client:
        yield client


REFUSED: dict[str, tuple[Any, str, str | None]] = {
    "no input": ({}, "input: Field required", None),
    "an empty text": ({"input": ""}, "input: is an empty string", None),
    "an empty text in a list": ({"input": ["a", ""]}, "input[1]: is an empty string", None),
    "an empty list": ({"input": []}, "input: is an empty list", None),
    "a number": ({"input": 5}, "input: must be a string", None),
    "true": ({"input": [True]}, "input: must be a list of token ids", None),
    "null": ({"input": None}, "input: must be a string", None),
    "mixed": ({"input": ["a", 5]}, "input[1]: must be a string", None),
    "half a character": ({"input": "\ud800"}, "input: holds half of a character", None),
    "negative tokens": ({"input": [-1]}, "input: must be a list of token ids", None),
    "unknown tokens": ({"input": [10**9]}, "input: the model's tokenizer has no token 1000000000", None),
    "tokens of another tokenizer": ({"input": [[64, 257, 31, 100, 90]]}, "input[0]: are not the tokens", None),
    "chunks in one context": ({"input": ["a"], "late_chunking": True}, "late_chunking: ", None),
    "bits of floats": ({"messages": [], "embed_dtype": "float16"}, "embed_dtype: ", None),
    "a type of numbers": ({"input": "a", "output_dtype": "int4"}, "output_dtype: ", None),
    "another model": ({"model": "gpt-5", "input": "a"}, "there is no model 'gpt-5'", "model_not_found"),
    "wide": ({"input": "a", "dimensions": 17}, "dimensions: 17 is not within 1 to 16", None),
    "narrow": ({"input": "a", "dimensions": 0}, "dimensions: 0 is not within 1 to 16", None),
    "dimensions in words": ({"input": "a", "dimensions": "4"}, "dimensions: ", None),
    "a format": ({"input": "a", "encoding_format": "int8"}, "encoding_format: ", None),
    "a modality": ({"input": "a", "modality": "video"}, "modality: ", None),
    "both": ({"input": "a", "messages": []}, "input: contradicts messages", None),
    "no messages": ({"messages": []}, "messages: hold nothing to embed", None),
    "no content": ({"messages": [{"role": "user"}]}, "messages[0].content: must be", None),
    "an object": ({"input": [{"video": "x"}]}, "input[0]: must have one of text, image and audio", None),
    "an address": ({"input": [{"image": "http://a.b/c.png"}]}, "input[0].image: this server fetches", "invalid_url"),
    "a path": ({"input": [{"image": "/etc/passwd"}]}, "input[0].image: is neither a data URL nor", "invalid_image"),
    "a file": ({"input": ["file:///etc/passwd"], "modality": "image"}, "input[0]: is neither", "invalid_image"),
    "no image": ({"input": [{"image": data_url(b"hello")}]}, "input[0].image: is no image", "invalid_image"),
    "a cut image": ({"input": [{"image": picture(1)[:60]}]}, "input[0].image: ", "invalid_image"),
    "no base64": (
        {"input": [{"image": "data:image/png;base64,@@"}]},
        "input[0].image: holds no base64",
        "invalid_image",
    ),
    "percent": ({"input": [{"image": "data:image/png,abc"}]}, "input[0].image: must be a data URL", "invalid_url"),
    "html": ({"input": [{"image": data_url(b"x", "text/html")}]}, "input[0].image: is text/html", "invalid_image"),
    "svg": ({"input": [{"image": data_url(b"<svg/>", "image/svg+xml")}]}, "input[0].image: is no im", "invalid_image"),
    "a sound": ({"input": [{"audio": "AAAA"}]}, "input[0].audio: this model has no audio encoder", None),
}


@pytest.mark.parametrize(("body", "fault", "code"), REFUSED.values(), ids=REFUSED)
def test_embeddings(client: Any, body: Any, fault: str, code: str | None) -> None:
    answer = client.post("/v1/embeddings", content=json.dumps(body), headers=JSON)
    assert answer.status_code == (404 if code == "model_not_found" else 400)
    error = fault_of(answer)
    assert error["message"].startswith(fault)
    assert error["type"] == "invalid_request_error"
    assert error["code"] == code


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ({}, "give one of texts, images and inputs"),
        ({"texts": ["a"], "images": []}, "give one of texts, images and inputs"),
        ({"texts": []}, "there is no input"),
        ({"texts": ["a"], "embedding_types": ["int4"]}, "embedding_types.0: "),
        ({"texts": ["a"], "max_tokens": 5}, "max_tokens: "),
        ({"texts": ["a"], "output_dimension": 99}, "output_dimension: 99 is not within"),
        ({"texts": ["a"], "truncate": "START"}, "truncate: "),
        ({"inputs": [{"content": [{"type": "video"}]}]}, "inputs[0].content[0].type: must be"),
    ],
)
def test_cohere(client: Any, body: Any, fault: str) -> None:
    answer = client.post("/v2/embed", json=body)
    assert answer.status_code == 400
    assert fault_of(answer)["message"].startswith(fault)


def test_bodies_that_are_no_json_objects(client: Any) -> None:
    deep = b'{"input":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    huge = b'{"dimensions": ' + b"9" * 5000 + b', "input": "a"}'
    many = b'{"input": [' + b"[]," * 1_000_000 + b"[]]}"
    for body in (
        many,
        b"",
        b"hi",
        b"[]",
        b"null",
        b'"a"',
        b"\xff\xfe",
        b'{"input": NaN}',
        b'{"input": "a"',
        deep,
        huge,
    ):
        answer = client.post("/v1/embeddings", content=body, headers=JSON)
        assert answer.status_code == 400, body[:40]
        fault_of(answer)
    answer = client.post("/v1/embeddings", content=b'{"input": "a"}', headers={"Content-Type": "text/plain"})
    assert answer.status_code == 415
    fault_of(answer)
    packed = {"content": gzip.compress(b'{"input": "a"}'), "headers": {**JSON, "Content-Encoding": "gzip"}}
    answer = client.post("/v1/embeddings", **packed)
    assert answer.status_code == 415
    assert "without Content-Encoding" in fault_of(answer)["message"]


def test_addresses_and_methods(client: Any) -> None:
    for method, path, status in (
        ("GET", "/nowhere", 404),
        ("GET", "/v1/embeddings/", 404),
        ("GET", "/v1/embeddings", 405),
        ("DELETE", "/v1/models", 405),
        ("GET", "/v1/models/other", 404),
        ("GET", "/docs", 404),
        ("GET", "/openapi.json", 404),
        ("GET", "/../../etc/passwd", 404),
    ):
        answer = client.request(method, path)
        assert answer.status_code == status, path
        fault_of(answer)


def test_who_is_near_an_address_is_told_it(client: Any) -> None:
    for path, meant in (
        ("/chat/completions", "/v1/chat/completions"),
        ("/v1/v1/embeddings", "/v1/embeddings"),
        ("/v1/embeddings/", "/v1/embeddings"),
        ("//v1/models", "/v1/models"),
        ("/health/", "/health"),
    ):
        assert fault_of(client.post(path, json={}))["message"].endswith(f"; it is at {meant}")
    for path in ("/nowhere", "//", "/v1"):
        assert "it is at" not in fault_of(client.post(path, json={}))["message"]


def test_a_head_is_a_get_without_its_content() -> None:
    with served(app_with(embedding_model())) as url:
        for path, status in (("/health", 200), ("/", 200), ("/v1/models", 200), ("/v1/embeddings", 405), ("/no", 404)):
            answer = httpx.head(f"{url}{path}")
            assert (answer.status_code, answer.content) == (status, b"")
            assert int(answer.headers["content-length"]) > 10


def test_a_run_that_aligns_answers_nothing(client: Any) -> None:
    answer = client.post("/v1/chat/completions", json=CHAT)
    assert answer.status_code == 400
    assert "answers nothing" in fault_of(answer)["message"]


def test_the_official_client_raises_its_own_errors() -> None:
    app = app_with(embedding_model(), api_key="secret")
    with served(app) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="secret", max_retries=0) as good:
        with pytest.raises(openai.BadRequestError) as caught:
            good.embeddings.create(model="tiny", input="")
        assert caught.value.param == "input"
        with pytest.raises(openai.NotFoundError):
            good.embeddings.create(model="other", input="a")
        with openai.OpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0) as bad:
            with pytest.raises(openai.AuthenticationError) as refused:
                bad.embeddings.create(model="tiny", input="a")
            assert refused.value.code == "invalid_api_key"


def test_the_key_opens_all_but_health() -> None:
    with client_of(app_with(embedding_model(), api_key="secret")) as client:
        for path in ("/health", "/ready"):
            assert client.get(path).status_code == 200
        for given in (None, "Bearer wrong", "Basic secret", "Bearer", "é"):
            headers = {} if given is None else {b"Authorization": given.encode()}
            for path in ("/v1/models", "/metrics", "/nowhere"):
                answer = client.get(path, headers=headers)
                assert answer.status_code == 401
                fault_of(answer)
        assert client.get("/v1/models", headers={"Authorization": "Bearer secret"}).status_code == 200
        assert client.get("/v1/models", headers={"authorization": "bearer secret"}).status_code == 200


def test_pages_of_other_sites_get_nothing(client: Any) -> None:
    """A site whose name stands for 127.0.0.1 after a while could read what is served without a key."""
    for host in ("evil.example", "evil.example:8000", "127.0.0.1.evil.example", ""):
        answer = client.get("/v1/models", headers={"Host": host})
        assert answer.status_code == 403
        fault_of(answer)
    for host in ("localhost:8000", "127.0.0.1", "[::1]:8000", "LOCALHOST"):
        assert client.get("/v1/models", headers={"Host": host}).status_code == 200
    with client_of(app_with(embedding_model(), host="0.0.0.0")) as everywhere:
        assert everywhere.get("/v1/models", headers={"Host": "my.server"}).status_code == 200


@pytest.mark.parametrize(
    ("limits", "body", "status"),
    [
        ({"body_bytes": 1000}, {"input": "a" * 2000}, 413),
        ({"items": 3}, {"input": ["a"] * 4}, 400),
        ({"media": 1}, {"input": [picture(1)] * 2, "modality": "image"}, 400),
        ({"tokens": 9}, {"input": ["a red star"] * 3}, 400),
        ({"tokens": 2}, {"input": [5, 6, 7]}, 400),
        ({"characters": 10}, {"input": "a" * 11}, 400),
        ({"pixels": 300}, {"input": [picture(1)], "modality": "image"}, 400),
        ({"queue": 2}, {"input": ["a"] * 3}, 400),
        ({"all_bytes": 1000}, {"input": "a" * 2000}, 429),
        ({"requests": 0}, {"input": "a"}, 429),
    ],
)
def test_limits(limits: dict[str, int], body: Any, status: int) -> None:
    with client_of(app_with(embedding_model(), replace(Limits(), **limits))) as client:
        answer = client.post("/v1/embeddings", json=body)
        assert answer.status_code == status
        fault_of(answer)
        assert ("retry-after" in answer.headers) == (status == 429)
        assert client.get("/health").status_code == 200


def test_a_fault_of_ours_says_nothing(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("impresa.serving.embedding_routes.form_of", lambda body: 1 / 0)
    answer = client.post("/v1/embeddings", json={"input": "a"})
    assert answer.status_code == 500
    assert fault_of(answer) == {
        "message": "the server has failed at this request; its log says more",
        "type": "server_error",
        "param": None,
        "code": None,
    }


WRONG: tuple[Any, ...] = (
    *(None, True, -1, 0, 10**12, 1.5, 1e308, "", "x", "\ud800", "\x00", [], [[]], [None], [[[]]], {}, {"": None}),
    *(
        {"type": "text"},
        {"type": "image_url", "image_url": {}},
        {"url": []},
        [{"content": 3}],
        "data:image/png;base64,",
    ),
)


def broken(rng: random.Random, body: Any) -> Any:
    """The body with a wrong value, without a field, or with one more, somewhere."""
    if isinstance(body, dict) and body and rng.random() < 0.9:
        key = rng.choice(list(body))
        changed = dict(body)
        if rng.random() < 0.15:
            del changed[key]
        else:
            changed[key] = broken(rng, body[key])
        return changed
    if isinstance(body, list) and body and rng.random() < 0.7:
        place = rng.randrange(len(body))
        return [*body[:place], broken(rng, body[place]), *body[place + 1 :]]
    return rng.choice(WRONG)


def mangled(rng: random.Random, content: bytes) -> bytes:
    """The JSON with a byte changed, a piece left out, or cut."""
    place, end = sorted(rng.randrange(len(content)) for _ in range(2))
    return rng.choice(
        (
            content[:place],
            content[:place] + bytes([rng.randrange(256)]) + content[place + 1 :],
            content[:place] + content[end:],
        )
    )


SEARCHES: tuple[dict[str, Any], ...] = (
    {"text": "red", "top": 5, "where": "label = 'odd'", "dimensions": 4, "shortlist": 9, "compare": True},
    {"query": [{"text": "a", "weight": 2}, {"image": picture(1)}], "not": [{"text": "b"}], "thumbnails": False},
)


def test_malformed_bodies_get_4xx(client: Any, tmp_path: Path) -> None:
    """2,000 bodies that are broken at random: those that still mean something may be answered, none is a fault of ours.

    A failure prints the seed that makes its body again.
    """
    indexed(tmp_path / "i", table(tmp_path / "squares", 4))
    limits = Limits(max_wait_ms=0)
    with (
        client_of(app_with(talking_model(), limits)) as talking,
        client_of(app_with(embedding_model(), limits, index=str(tmp_path / "i"))) as searching,
    ):
        targets = [(client, path, body) for path, bodies in FORMS.items() for body in bodies]
        targets += [(searching, "/search", body) for body in SEARCHES]
        targets.append((talking, "/v1/chat/completions", CHAT))
        num_refused = seed = 0
        while num_refused < 2000:
            rng = random.Random(seed)
            who, path, body = targets[seed % len(targets)]
            content = json.dumps(broken(rng, body)).encode()
            if seed % 3 == 0:
                content = mangled(rng, content)
            answer = who.post(path, content=content, headers=JSON)
            assert answer.status_code == 200 or 400 <= answer.status_code < 500, f"seed {seed}: {answer.status_code}"
            if answer.status_code != 200:
                fault_of(answer)
                told = [word for word in (str(finished_run()), str(tmp_path), "Traceback") if word in answer.text]
                assert told == [], f"seed {seed}"
                num_refused += 1
            seed += 1
    sys.stdout.write(f"seeds 0 to {seed - 1}: {num_refused} refused\n")
