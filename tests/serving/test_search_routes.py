"""`/search` and `/info`: what they find, what they refuse, and that they follow updates of the index."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient
from torch.nn import functional as F

import impresa
from impresa.errors import CheckpointError
from impresa.run_dir.load import read_run_config
from impresa.search.index import Index
from impresa.search.opening import open_readers
from impresa.search.update import update_index
from impresa.serving import searching
from impresa.serving.app import make_app
from impresa.serving.settings import Settings
from some_index import indexed, matryoshka_run, square, squares, table, tiny_model
from tiny_run import copy_of_run, finished_run
from tiny_vlm import finished_vlm

HERE = "http://127.0.0.1"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    indexed(folder / "i", table(folder / "squares", 40), run=matryoshka_run())
    return folder


@pytest.fixture(scope="module")
def index(place: Path) -> Index:
    return impresa.open_index(place / "i")


@pytest.fixture(scope="module")
def client(place: Path) -> Iterator[TestClient]:
    with TestClient(make_app(Settings(run=matryoshka_run(), index=str(place / "i"))), HERE) as found:
        yield found


def picture(place: Path, number: int = 6) -> str:
    content = (place / "squares" / f"{number}.png").read_bytes()
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def found(client: TestClient, **body: Any) -> dict[str, Any]:
    answer = client.post("/search", json=body)
    assert answer.status_code == 200, answer.text
    told: dict[str, Any] = answer.json()
    return told


def scores(told: dict[str, Any]) -> list[float]:
    return [result["score"] for result in told["results"]]


def test_it_finds_what_the_index_finds(client: TestClient, index: Index, place: Path) -> None:
    model, file = tiny_model(), place / "squares" / "6.png"
    words, image = model.encode_text("red"), model.encode_image(file)
    other = model.encode_text("a blue star")
    row = found(client, text="red", top=1)["results"][0]
    neighbour = index.state.vector_of(row["id"])
    assert neighbour is not None
    queries: list[tuple[dict[str, Any], torch.Tensor]] = [
        ({"text": "red"}, words),
        ({"image": picture(place)}, image),
        ({"id": row["id"]}, neighbour),
        ({"query": [{"vector": words.tolist()}]}, words),
        ({"query": [{"text": "red", "weight": 3}, {"image": picture(place)}]}, 3 * words + image),
        ({"text": "red", "not": [{"image": picture(place)}]}, words - 0.5 * image),
        (
            {"text": "red", "not": [{"text": "a blue star"}, {"id": row["id"]}]},
            words - F.normalize(other + neighbour, dim=0) / 2,
        ),
    ]
    for body, vector in queries:
        told = found(client, **body, top=40, with_vector=True)
        expected = index.search(vector, top=40)
        assert scores(told) == pytest.approx([result.score for result in expected], abs=1e-5), body
        assert told["vector"] == pytest.approx(F.normalize(vector, dim=0).tolist(), abs=1e-5)
        assert [result["rank"] for result in told["results"]] == list(range(1, 41))
    assert found(client, id=row["id"], top=1)["results"][0]["score"] == pytest.approx(1, abs=1e-5)


def test_a_result_has_what_is_known_of_it(client: TestClient, place: Path) -> None:
    result = found(client, image=picture(place), top=1)["results"][0]
    assert (result["name"], result["caption"], result["label"]) == ("6.png", "square 6", "even")
    assert (result["modality"], result["rank"]) == ("image", 1)
    assert result["thumbnail"].startswith("data:image/jpeg;base64,/9j/")
    assert "thumbnail" not in found(client, text="red", top=1, thumbnails=False)["results"][0]


def test_a_dimension_is_compared_with_the_exact_search(client: TestClient, index: Index) -> None:
    exact = index.search("red", top=10, dim=16)
    for dim, shortlist in ((4, 10), (4, 40), (8, 10), (16, None)):
        told = found(client, text="red", top=10, dimensions=dim, compare=True, shortlist=shortlist)
        names = {result["name"] for result in told["results"]}
        shared = len(names & {result.path for result in exact})
        assert told["recall"] == pytest.approx(shared / 10)
        assert told["dimensions"] == dim
        assert told["milliseconds"] > 0
        assert told["exact_milliseconds"] > 0
    assert found(client, text="red", dimensions=4)["recall"] is None  # it costs as much as a search


def test_conditions(client: TestClient) -> None:
    told = found(client, text="red", where="label = 'odd' AND year >= 2030 AND caption != 'source'", top=40)
    assert {result["label"] for result in told["results"]} == {"odd"}
    assert len(told["results"]) == 5
    assert found(client, text="red", where="year > 3000", compare=True)["recall"] == 1.0
    assert len(found(client, text="red", where="lower(label) IN ('odd', 'a -- b') AND (year > 2035)")["results"]) == 2


@pytest.mark.parametrize(
    ("body", "line", "param"),
    [
        ({}, "query: there is nothing to search for", "query"),
        ({"query": []}, "query: there is nothing to search for", "query"),
        ({"text": ""}, "text: String should have at least 1 character", "text"),
        ({"text": 5}, "text: Input should be a valid string", "text"),
        ({"text": "red", "topp": 3}, "topp: is unknown here; leave it out", "topp"),
        ({"text": "red", "top": 0}, "top: Input should be greater than", "top"),
        ({"text": "red", "top": 10_000}, "top: Input should be less than", "top"),
        ({"query": [{}]}, "query.0: ", "query.0"),
        ({"query": [{"text": "red", "id": "a"}]}, "query.0: Value error, give exactly one", "query.0"),
        ({"query": [{"text": "red", "weight": -1}]}, "query.0.weight: ", "query.0.weight"),
        ({"query": [{"vector": [1.0]}]}, "query.0.vector: has 1 numbers, and the index's have 16", "query.0.vector"),
        ({"query": [{"vector": [0.0] * 16}]}, "query: its parts cancel each other", "query"),
        ({"query": [{"text": "a"}] * 17}, "query: List should have at most 16 items", "query"),
        ({"id": "nothing"}, "query.id: no row of the index has this id", "query.id"),
        ({"image": "data:image/png;base64,AAAA"}, "query.image: is no image that can be read", "query.image"),
        ({"image": "/etc/passwd"}, "query.image: ", "query.image"),
        ({"sound": "data:audio/wav;base64,AAAA"}, "query.sound: ", "query.sound"),
        ({"text": "red", "dimensions": 17}, "dimensions: 17 is not within 1 to 16", "dimensions"),
        ({"text": "red", "where": "colour = 1"}, "where: Schema error: No field named colour", "where"),
        ({"text": "red", "where": "SOURCE LIKE '/home%'"}, "where: the column source is not for others", "where"),
        ({"text": "red", "where": "\"source\" = 'it''s'"}, "where: the column source is not for others", "where"),
        ({"text": "red", "where": "`source` = ''"}, "where: the column source is not for others", "where"),
        ({"text": "red", "where": "/*'*/source LIKE '/%'"}, "where: /* cannot be read there", "where"),
        ({"text": "red", "where": "-- '\nsource LIKE '/%'"}, "where: -- cannot be read there", "where"),
        ({"text": "red", "where": "\"'\" = 1 OR source LIKE '/%'"}, "where: the column source is not", "where"),
        ({"text": "red", "where": "length(repeat('x', 100)) > 1"}, "where: repeat cannot be used here", "where"),
        ({"text": "red", "where": "\"repeat\" ('x', 100) > 1"}, "where: repeat cannot be used here", "where"),
        ({"text": "red", "where": "path::int = 1"}, "where: :: cannot be used here", "where"),
    ],
)
def test_what_is_refused(client: TestClient, body: dict[str, Any], line: str, param: str, place: Path) -> None:
    answer = client.post("/search", json=body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["message"].startswith(line)
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"
    assert str(place) not in answer.text


def test_no_folder_of_the_server_is_in_an_answer(tmp_path: Path) -> None:
    square(tmp_path / "private" / "elsewhere.png", 3)
    folder = tmp_path / "data"
    folder.mkdir()
    row = f'{{"image": "{tmp_path}/private/elsewhere.png", "caption": "one", "file": "{tmp_path}/private"}}\n'
    (folder / "rows.jsonl").write_text(row)
    config, names = read_run_config(finished_run()), [str(folder / "rows.jsonl")]
    readers = lambda: open_readers(config, names, ("image",), ["dataset.allow_outside=true"])  # noqa: E731
    update_index(str(tmp_path / "i"), finished_run(), readers, tiny_model, modalities=("image",))
    with TestClient(make_app(Settings(run=finished_run(), index=str(tmp_path / "i"))), HERE) as client:
        texts = [client.post("/search", json={"text": "one"}).text, client.get("/info").text]
    assert "elsewhere.png" in texts[0]
    for text in texts:
        assert "private" not in text
        assert str(tmp_path) not in text


def test_an_index_that_is_gone_is_503_without_its_place(tmp_path: Path) -> None:
    indexed(tmp_path / "i", squares(tmp_path / "squares", 5))
    with TestClient(make_app(Settings(run=finished_run(), index=str(tmp_path / "i"))), HERE) as client:
        shutil.rmtree(tmp_path / "i")
        for body in ({"text": "red"}, {"text": "red", "where": "id != 'a'"}, {"id": "a"}):
            answer = client.post("/search", json=body)
            assert answer.status_code == 503, answer.text
            assert str(tmp_path) not in answer.text
        assert client.get("/sounds/a").status_code == 503


def test_what_the_server_can_do(client: TestClient) -> None:
    told = client.get("/info").json()
    assert told["name"] == "shapes"
    assert told["can"] == {"text": True, "image": True, "sound": False, "ask": False}
    assert told["index"] == {
        "rows": 40,
        "width": 16,
        "dimensions": [4, 8, 16],
        "trained": True,
        "modalities": ["image"],
    }


def test_an_update_shows_without_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(searching, "_REFRESH_S", 0.0)
    folder = squares(tmp_path / "squares", 5)
    indexed(tmp_path / "i", folder)
    with TestClient(make_app(Settings(run=finished_run(), index=str(tmp_path / "i"))), HERE) as client:
        assert len(found(client, text="red")["results"]) == 5
        square(folder / "30.png", 30)
        (folder / "0.png").unlink()
        indexed(tmp_path / "i", folder)
        names = {result["name"] for result in found(client, text="red")["results"]}
        assert names == {"sub/1.png", "2.png", "sub/3.png", "4.png", "30.png"}
        assert client.get("/info").json()["index"]["rows"] == 5


def test_a_run_that_answers_searches_with_the_model_of_the_index(place: Path, index: Index) -> None:
    with TestClient(make_app(Settings(run=finished_vlm(), index=str(place / "i"))), HERE) as client:
        told = client.get("/info").json()
        assert told["can"] == {"text": True, "image": True, "sound": False, "ask": True}
        for body, query in (({"text": "red"}, "red"), ({"image": picture(place)}, place / "squares" / "6.png")):
            expected = [result.score for result in index.search(query, top=5)]
            assert scores(found(client, **body, top=5)) == pytest.approx(expected, abs=1e-5)
        fault = client.post("/search", json={"image": "data:image/png;base64,AAAA"})
        assert (fault.status_code, fault.json()["error"]["param"]) == (400, "query.image")


def test_without_an_index(tmp_path: Path) -> None:
    with TestClient(make_app(Settings(run=finished_run())), HERE) as client:
        answer = client.post("/search", json={"text": "red"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "no_index")
        assert "start the server with --index" in answer.json()["error"]["message"]
        assert client.get("/info").json()["index"] is None


def test_an_index_of_another_run_is_refused_at_the_start(place: Path, tmp_path: Path) -> None:
    other = copy_of_run(tmp_path / "other")
    manifest = other / "manifest.json"
    text = manifest.read_text()
    first = text.index('"model.safetensors": "') + len('"model.safetensors": "')
    manifest.write_text(text[:first] + ("0" if text[first] != "0" else "1") + text[first + 1 :])
    with pytest.raises(CheckpointError):
        make_app(Settings(run=other, index=str(place / "i")))
    with pytest.raises(CheckpointError, match="is no index; make it with `impresa index"):
        make_app(Settings(run=finished_run(), index=str(tmp_path / "nothing")))
