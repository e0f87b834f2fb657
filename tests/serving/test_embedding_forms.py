"""Embeddings as the official `openai` client asks for them, and in the multimodal forms of others."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import numpy as np
import openai
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from impresa.data.audio import decode_audio
from impresa.tasks.alignment.embedder import EmbeddingModel
from pictures import png
from served import app_with, client_of, data_url, embedding_model, hearing_model, picture, served
from sounds_on_disk import wav

TEXTS = ["a red star", "a blue circle and a green square", "x"]
SOUND = data_url(wav(440), "audio/wav")


@pytest.fixture(scope="module")
def client() -> Iterator[openai.OpenAI]:
    with served(app_with(embedding_model())) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="any") as client:
        yield client


@pytest.fixture(scope="module")
def hearing() -> Iterator[Any]:
    with client_of(app_with(hearing_model())) as client:
        yield client


def close(found: Any, wanted: Tensor) -> None:
    torch.testing.assert_close(torch.tensor(np.array(found)).float(), wanted, atol=1e-5, rtol=0)


def test_the_official_client_gets_what_encode_gives(client: openai.OpenAI) -> None:
    wanted = embedding_model().encode_text(TEXTS)
    found = client.embeddings.create(model="tiny", input=TEXTS)
    close([row.embedding for row in found.data], wanted)
    assert [row.index for row in found.data] == [0, 1, 2]
    assert found.model == "tiny"
    num = sum(len(row) for row in embedding_model().preprocessing.texts.rows(TEXTS))
    assert (found.usage.prompt_tokens, found.usage.total_tokens) == (num, num)
    floats = client.embeddings.create(model="tiny", input=TEXTS[0], encoding_format="float")
    close(floats.data[0].embedding, wanted[0])


def test_dimensions_are_a_prefix_of_length_one(client: openai.OpenAI) -> None:
    found = client.embeddings.create(model="tiny", input=TEXTS, dimensions=4)
    close([row.embedding for row in found.data], embedding_model().encode_text(TEXTS, dim=4))


def test_base64_is_little_endian_float32(hearing: Any) -> None:
    body = {"input": "a", "encoding_format": "base64"}
    row = hearing.post("/v1/embeddings", json=body).json()["data"][0]["embedding"]
    close(np.frombuffer(base64.b64decode(row), "<f4"), hearing_model().encode_text("a"))


def test_token_ids_stand_for_their_text(client: openai.OpenAI) -> None:
    ids = [embedding_model().preprocessing.texts.encode(text) for text in TEXTS]  # type: ignore[union-attr]
    wanted = embedding_model().encode_text(TEXTS)
    close([row.embedding for row in client.embeddings.create(model="tiny", input=ids).data], wanted)
    close(client.embeddings.create(model="tiny", input=ids[0]).data[0].embedding, wanted[0])


def test_models_are_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "impresa"


def unit(*vectors: Tensor) -> Tensor:
    return F.normalize(torch.stack(vectors).mean(dim=0), dim=-1)


def seen(model: EmbeddingModel, number: int) -> Tensor:
    return model.encode_image(png(number * 37, 20, 20))


def image_part(number: int) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": picture(number)}}


def heard(model: EmbeddingModel) -> Tensor:
    return model.encode_audio(decode_audio(wav(440)))


def both(model: EmbeddingModel) -> Tensor:
    return model.encode_image_audio(png(37, 20, 20), decode_audio(wav(440)))


def said(model: EmbeddingModel, text: str) -> Tensor:
    return model.encode_text(text)


def speech(content: bytes) -> dict[str, Any]:
    data = base64.b64encode(content).decode()
    return {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}


LISTED: dict[str, tuple[dict[str, Any], Any]] = {
    "vllm, a picture": ({"messages": [{"role": "user", "content": [image_part(1)]}]}, lambda m: [seen(m, 1)]),
    "vllm, words": ({"messages": [{"role": "user", "content": "hi"}]}, lambda m: [said(m, "hi")]),
    "vllm, words and a picture": (
        {"messages": [{"role": "system", "content": "hi"}, {"role": "user", "content": [image_part(1)]}]},
        lambda m: [unit(said(m, "hi"), seen(m, 1))],
    ),
    "vllm, empty texts": (
        {
            "messages": [
                {"role": "user", "content": [image_part(1), {"type": "text", "text": ""}]},
                {"role": "assistant", "content": [{"type": "text", "text": ""}]},
            ],
            "continue_final_message": True,
            "add_special_tokens": True,
        },
        lambda m: [seen(m, 1)],
    ),
    "vllm, a picture and a sound": (
        {"messages": [{"role": "user", "content": [image_part(1), speech(wav(440))]}]},
        lambda m: [both(m)],
    ),
    "infinity, pictures": (
        {"input": [picture(1), picture(2)], "modality": "image"},
        lambda m: [seen(m, 1), seen(m, 2)],
    ),
    "infinity, a sound": ({"input": SOUND, "modality": "audio"}, lambda m: [heard(m)]),
    "infinity, as its client asks": (
        {"input": ["a"], "model": "default/not-specified", "dimensions": 0, "modality": "text"},
        lambda m: [said(m, "a")],
    ),
    "infinity, words": ({"input": ["a", "b"], "modality": "text"}, lambda m: [said(m, "a"), said(m, "b")]),
    "jina": (
        {"input": [{"text": "a"}, {"image": picture(1)}, {"image": picture(2).partition(",")[2]}, {"audio": SOUND}]},
        lambda m: [said(m, "a"), seen(m, 1), seen(m, 2), heard(m)],
    ),
    "jina, older models": ({"input": [{"bytes": picture(2).partition(",")[2]}]}, lambda m: [seen(m, 2)]),
    "jina, strings": ({"input": ["a", {"image": picture(3)}]}, lambda m: [said(m, "a"), seen(m, 3)]),
}


@pytest.mark.parametrize(("body", "wanted"), LISTED.values(), ids=LISTED)
def test_forms_at_the_address_of_openai(hearing: Any, body: dict[str, Any], wanted: Any) -> None:
    answer = hearing.post("/embeddings" if "modality" in body else "/v1/embeddings", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["object"] == "list"
    rows = [row["embedding"] for row in answer.json()["data"]]
    close(rows, torch.stack(wanted(hearing_model())))


def test_jina_types_and_lengths(hearing: Any) -> None:
    def post(**options: Any) -> Any:
        return hearing.post("/v1/embeddings", json={"input": [{"text": "a"}], **options}).json()["data"][0]["embedding"]

    model = hearing_model()
    close(post(normalized=False), model.encode_text("a", normalize=False))
    assert post(embedding_type="ubinary") == model.encode_text("a", precision="ubinary").tolist()
    assert post(embedding_type=["binary"]) == model.encode_text("a", precision="binary").tolist()
    close(
        np.frombuffer(base64.b64decode(post(embedding_type="base64", dimensions=8)), "<f4"),
        model.encode_text("a", dim=8),
    )


def cosines(found: Any, wanted: Tensor) -> list[float]:
    rows: list[float] = F.cosine_similarity(torch.tensor(np.array(found)).float(), wanted).tolist()
    return rows


def test_cohere_in_eight_bits(hearing: Any) -> None:
    wanted = hearing_model().encode_text(["a", "b"])

    def post(*texts: str) -> Any:
        body = {"model": "tiny", "texts": texts, "input_type": "search_query", "embedding_types": ["int8", "uint8"]}
        return hearing.post("/v2/embed", json=body).json()["embeddings"]

    found = post("a", "b")
    assert min(cosines(found["int8"], wanted)) > 0.999
    assert [max(map(abs, row)) for row in found["int8"]] == [127, 127]
    assert (np.array(found["uint8"]) - 128).tolist() == found["int8"]
    assert post("b")["int8"] == found["int8"][1:], "what is embedded beside a text makes a difference"


def test_cohere_of_older_clients(hearing: Any) -> None:
    body = {"model": "tiny", "texts": ["a", "b"], "input_type": "search_query", "truncate": "END"}
    found = hearing.post("/v1/embed", json=body).json()
    close(found["embeddings"], hearing_model().encode_text(["a", "b"]))
    assert found["response_type"] == "embeddings_floats"
    typed = hearing.post("/v1/embed", json={**body, "embedding_types": ["float"]}).json()
    assert (typed["embeddings"], typed["response_type"]) == ({"float": found["embeddings"]}, "embeddings_by_type")


def test_cohere(hearing: Any) -> None:
    model = hearing_model()
    content = [{"content": [{"type": "text", "text": "a"}, image_part(1)]}]
    asked: list[tuple[dict[str, Any], Tensor, int]] = [
        ({"texts": ["a", "b"]}, model.encode_text(["a", "b"], dim=8), 0),
        ({"images": [picture(1)]}, model.encode_image([png(37, 20, 20)], dim=8), 1),
        ({"inputs": content}, F.normalize(unit(said(model, "a"), seen(model, 1))[None, :8]), 1),
    ]
    for body, wanted, num_images in asked:
        options = {"input_type": "search_document", "output_dimension": 8, "embedding_types": ["float", "ubinary"]}
        found = hearing.post("/v2/embed", json={"model": "tiny", **body, **options}).json()
        close(found["embeddings"]["float"], wanted)
        assert len(found["embeddings"]["ubinary"][0]) == 1
        assert found["response_type"] == "embeddings_by_type"
        assert found["id"]
        assert found["meta"]["billed_units"]["images"] == num_images


@pytest.mark.parametrize("path", ["/v1/multimodalembeddings", "/v1/embeddings"])
def test_voyage(hearing: Any, path: str) -> None:
    content = [{"type": "text", "text": "a"}, {"type": "image_base64", "image_base64": picture(1)}]
    body = {"inputs": [{"content": content}, {"content": [{"type": "image_url", "image_url": picture(2)}]}]}
    found = hearing.post(path, json={"model": "tiny", "input_type": "query", "truncation": True, **body}).json()
    model = hearing_model()
    wanted = torch.stack([unit(said(model, "a"), seen(model, 1)), seen(model, 2)])
    close([row["embedding"] for row in found["data"]], wanted)
    tokens = len(model.preprocessing.texts.rows(["a"])[0])
    counts = {"text_tokens": tokens, "image_pixels": 800, "video_pixels": 0, "total_tokens": tokens + 1}
    assert found["usage"] == counts, "the official client reads all four"


TYPES = {"float": "<f4", "int8": "i1", "uint8": "u1", "binary": "i1", "ubinary": "u1"}


@pytest.mark.parametrize("kind", [None, *TYPES])
@pytest.mark.parametrize("path", ["/v1/multimodalembeddings", "/v1/embeddings"])
def test_voyage_as_its_client_asks(hearing: Any, path: str, kind: str | None) -> None:
    given: dict[str, Any] = {"input": ["a", "b"]}
    if path.endswith("multimodalembeddings"):
        given = {"inputs": [{"content": [{"type": "text", "text": text}]} for text in given["input"]]}
    options = {"input_type": None, "truncation": True, "output_dtype": kind, "output_dimension": 8}
    body = {**given, "model": "tiny", **options, "encoding_format": "base64"}
    found = hearing.post(path, json=body).json()
    rows = [np.frombuffer(base64.b64decode(row["embedding"]), TYPES[kind or "float"]) for row in found["data"]]
    wanted = hearing_model().encode_text(["a", "b"], dim=8)
    if kind in ("binary", "ubinary"):
        precision: Any = kind
        assert np.array(rows).tolist() == hearing_model().encode_text(["a", "b"], dim=8, precision=precision).tolist()
    else:
        assert min(cosines(np.array(rows) - np.float32(128 if kind == "uint8" else 0), wanted)) > 0.999
    assert found["usage"]["total_tokens"] > 0
    long = {"input": "a red star " * 200, "truncation": False}
    assert hearing.post("/v1/embeddings", json=long).status_code == 400


def test_long_texts_are_cut_or_refused(hearing: Any) -> None:
    long = "a red star " * 200
    wanted = hearing_model().encode_text(long)
    close(hearing.post("/v1/embeddings", json={"input": long}).json()["data"][0]["embedding"], wanted)
    answer = hearing.post("/v2/embed", json={"texts": [long], "truncate": "NONE"})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "context_length_exceeded"
    content = [{"content": [{"type": "text", "text": long}]}]
    assert hearing.post("/v1/multimodalembeddings", json={"inputs": content, "truncation": False}).status_code == 400
