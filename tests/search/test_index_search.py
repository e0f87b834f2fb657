"""Searching an index: queries of all kinds, conditions, dimensions, LanceDB's own index, and the bench."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import impresa
from impresa.config import load_experiment
from impresa.errors import CheckpointError, ConfigError, DataError
from impresa.search import about, bench, snapshot, update
from impresa.search.index import Index
from impresa.search.query import Query
from some_index import indexed, matryoshka_run, squares, table, tiny_model
from tiny_run import finished_run


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("searched")
    indexed(folder / "i", table(folder / "squares", 40), run=matryoshka_run())
    return folder


@pytest.fixture(scope="module")
def index(place: Path) -> Index:
    return impresa.open_index(place / "i")


def unit(vector: torch.Tensor) -> torch.Tensor:
    return F.normalize(vector, dim=-1)


def scores_of(index: Index, vector: torch.Tensor) -> list[float]:
    return sorted((index.vectors() @ unit(vector)).tolist(), reverse=True)


def test_it_says_what_it_is(index: Index) -> None:
    text = repr(index)
    assert "40 rows, run shapes at " in text
    assert text.endswith("dims 16, 8, 4)")
    assert len(index) == 40


def test_a_copy_in_another_process_finds_the_same(index: Index) -> None:
    index.search("red", top=1)  # with the model and vectors loaded
    again = pickle.loads(pickle.dumps(index))
    assert (again.path, again.run_dir, len(again)) == (index.path, index.run_dir, 40)
    assert again.search("red", top=5) == index.search("red", top=5)


def test_the_defaults_of_torch_change_no_search(place: Path, index: Index) -> None:
    usual = [result.score for result in index.search("red", top=3)]
    for change, back in (
        (lambda: torch.set_default_device("meta"), lambda: torch.set_default_device(None)),
        (lambda: torch.set_default_dtype(torch.bfloat16), lambda: torch.set_default_dtype(torch.float32)),
    ):
        change()
        try:
            again = impresa.open_index(place / "i")
            assert [result.score for result in again.search("red", top=3)] == usual
            assert again.search_vectors(index.vectors()[:1], top=1)[1].tolist() == [[0]]
            assert impresa.semantic_search(index.vectors()[:1], index.vectors(), top_k=1)[0][0]["corpus_id"] == 0
        finally:
            back()


def test_a_vector_may_be_a_list_or_an_array(index: Index) -> None:
    vector = index.vectors()[5]
    wanted = [result.key for result in index.search(vector, top=3)]
    for same in (vector.tolist(), vector.numpy(), vector.double(), list(vector.numpy())):
        assert [result.key for result in index.search(same, top=3)] == wanted
    scores, rows = index.search_vectors(vector[None], top=3)
    for several in (vector, vector.numpy()[None], [vector.tolist()]):
        found = index.search_vectors(several, top=3)
        assert torch.equal(found[0], scores)
        assert torch.equal(found[1], rows)
    with pytest.raises(DataError, match=r"^queries: is no vector of 16 finite numbers"):
        index.search_vectors(torch.ones(2, 3))


@pytest.mark.parametrize("path", ["", " ", None, 3])
def test_no_path_is_no_index(path: Any) -> None:
    with pytest.raises(CheckpointError, match=r"^path: got .*; give that of an index"):
        impresa.open_index(path)


@pytest.mark.parametrize("sources", [3, [None], ["a", 4]])
def test_sources_are_paths(index: Index, sources: Any) -> None:
    with pytest.raises(DataError, match=r"^sources: got (int|NoneType); give the path of a folder"):
        index.update(sources)


def test_queries_of_all_kinds(index: Index, place: Path) -> None:
    model, file = tiny_model(), place / "squares" / "6.png"
    picture, words, other = (model.encode_image(str(file)), *model.encode_text(["red", "a blue star"]))
    mean = unit(torch.stack([words, other]).mean(dim=0))
    queries = {
        "red": words,
        file: picture,
        str(file): picture,
        Query(texts=("red", "a blue star")): mean,
        Query(texts=("red",), images=(str(file),), weight=0.25): 0.25 * words + 0.75 * picture,
        Query(texts=("red", "a blue star"), images=(str(file),)): mean + picture,
        Query(images=(str(file),), without=("red",)): picture - 0.5 * words,
        Query(texts=("red",), without=(str(file),)): words - 0.5 * picture,
    }
    for query, vector in queries.items():
        found = index.search(query, top=40)
        assert [result.score for result in found] == pytest.approx(scores_of(index, vector), abs=1e-5)
        assert [result.rank for result in found] == list(range(1, 41))
    one = index.search("red", image=str(file), weight=0.25, top=3)
    assert one == index.search(Query(("red",), (str(file),), weight=0.25), top=3)
    assert index.search(["red", "a blue star"], top=4) == index.search(Query(("red", "a blue star")), top=4)
    assert index.search("a picture.png of red", text=None, image=None, top=1) == index.search(
        text="a picture.png of red", top=1
    )
    assert index.search(text="red", without=str(file)) == index.search(Query(("red",), without=(str(file),)))


def test_not_like_this_lowers_what_is_like_it(index: Index, place: Path) -> None:
    file = str(place / "squares" / "6.png")
    rank = {result.path: result.rank for result in index.search("red", top=40)}["6.png"]
    without = {result.path: result.rank for result in index.search("red", without=file, top=40)}["6.png"]
    assert without > rank


@pytest.mark.parametrize("dim", [None, 4, 16])
def test_conditions_apply_before_the_shortlist(index: Index, dim: int | None) -> None:
    where = "label = 'odd' AND year >= 2030 AND price < 19"
    found = index.search(index.vectors()[0], top=3, where=where, dim=dim)
    inside = [31, 33, 35, 37]
    vectors = {result.path: result.score for result in index.search(index.vectors()[0], top=40, dim=16)}
    best = sorted((vectors[f"sub/{number}.png"] for number in inside), reverse=True)
    assert [result.score for result in found] == pytest.approx(best[:3], abs=1e-5)
    assert {result.label for result in found} == {"odd"}
    assert index.search(index.vectors()[0], where="year > 3000", dim=dim) == []


@pytest.mark.parametrize(
    ("where", "line"),
    [
        ("label = 'odd", "where: invalid SQL predicate: Unterminated string literal"),
        (
            "colour = 'red'",
            "where: Schema error: No field named colour; write a condition such as label = 'cat' with the ",
        ),
        ("year = 'a'", "where: Error resolving filter expression year = 'a'"),
        ("year", "where: The filter year does not return a boolean"),
        ("; DROP TABLE items", "where: "),
        (" ", "where: the condition is empty; leave it out"),
        (3, "where: got int; give a text"),
        ("label = ?", "where: ? cannot be read there; write one condition, with the values themselves"),
        ("year > 1; DROP TABLE items", "where: ; cannot be read there"),
        ("label = N'odd'", "where: N' cannot be read there"),
    ],
)
def test_a_condition_that_is_none_is_one_line(index: Index, where: str, line: str) -> None:
    for dim in (4, 16):
        with pytest.raises(ConfigError) as caught:
            index.search(index.vectors()[0], where=where, dim=dim)
        assert str(caught.value).startswith(line)
        assert "\n" not in str(caught.value)
        assert ".rs" not in str(caught.value)


@pytest.mark.parametrize(
    ("query", "line"),
    [
        (" ", "query: the words ' ' are empty"),
        (None, "query: there is nothing to search for"),
        ([None], "images[0]: got NoneType"),
        (5, "images[0]: got int; give a path"),
        ("my photos/no such.png", "my photos/no such.png: there is no such file; name one"),
        (__file__, "images[0]: "),
        ("no/such.png", "no/such.png: there is no such file; name one"),
        (torch.ones(7), "query: is no vector of 16 finite numbers"),
        ([0.5] * 7, "query: is no vector of 16 finite numbers"),
        (np.array(["red"]), "query: is no vector of 16 finite numbers"),
        (torch.full((16,), torch.nan), "query: is no vector of 16 finite numbers"),
        (Query(("red",), weight=2), "weight: 2 is no number from 0 to 1"),
        (Query(("red",), without=("red",), weight=1), None),
    ],
)
def test_queries_that_are_none(index: Index, query: object, line: str | None) -> None:
    if line is None:
        assert len(index.search(query, top=5)) == 5
        return
    with pytest.raises(DataError) as caught:
        index.search(query)
    assert str(caught.value).startswith(line)


def test_a_damaged_index_is_one_error(place: Path, tmp_path: Path) -> None:
    """Whichever of its files is gone or cut."""
    files = [path.relative_to(place / "i") for path in (place / "i").rglob("*") if path.is_file()]
    assert len(files) > 5
    num_faults = 0
    for number, name in enumerate(files):
        copy = tmp_path / str(number)
        shutil.copytree(place / "i", copy)
        content = (copy / name).read_bytes()
        (copy / name).unlink()
        if number % 2:
            (copy / name).write_bytes(content[: len(content) // 2])
        try:
            index = impresa.open_index(copy)
            for where in (None, "year > 2000"):
                assert index.search(index.vectors()[0], where=where, top=3)
        except CheckpointError:
            num_faults += 1
    assert num_faults


@pytest.mark.parametrize("dim", [0, 17, 2.5, True])
def test_dimensions_that_are_none(index: Index, dim: int) -> None:
    with pytest.raises(ConfigError, match=r"dim: .* is not within 1 to 16"):
        index.search(index.vectors()[0], dim=dim)


def test_a_shortlist_of_the_results_alone_is_the_order_of_the_prefix(index: Index) -> None:
    query = index.vectors()[5]
    prefixes = index.prefixes(4)
    expected = (prefixes @ unit(query[:4])).topk(3).indices
    _, rows = index.state.search_vectors(query[None], top=3, dim=4, shortlist=3)
    assert set(rows[0].tolist()) == set(expected.tolist())
    _, rows = index.state.search_vectors(query[None], top=3, dim=4, shortlist=40)
    assert rows[0].tolist() == index.search_vectors(query[None], top=3, dim=16)[1][0].tolist()


def test_each_row_is_found_by_its_key(index: Index) -> None:
    for result in index.search("red", top=5):
        vector = index.state.vector_of(result.key)
        assert vector is not None
        assert index.search(vector, top=1)[0].path == result.path
    assert index.state.vector_of("no' OR 1 = 1 --") is None


def test_a_few_candidates_are_read_without_the_rest(place: Path) -> None:
    index = impresa.open_index(place / "i")
    query = index.state._store.vectors_of([int(index.state._row_ids()[5])])[0]
    dim = index.about.prefix_dim
    assert dim is not None
    assert index.search(query, top=1, dim=dim)[0].score == pytest.approx(1, abs=1e-5)
    assert set(index.state._matrices) == {dim}
    stored = index.prefixes(dim)
    assert torch.allclose(stored, unit(index.vectors()[:, :dim]), atol=1e-6)


def test_above_a_size_lancedb_makes_the_shortlist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(update, "INDEX_ABOVE", 30)
    folder = table(tmp_path / "squares", 32)
    indexed(tmp_path / "i", folder, run=matryoshka_run())
    index = impresa.open_index(tmp_path / "i")
    assert index.state._indexed == "prefix"
    query = index.vectors()[7]
    exact = index.search(query, top=5, dim=16)
    monkeypatch.setattr(snapshot, "funnel_search", lambda *args: pytest.fail("torch makes the shortlist"))
    assert [hit.path for hit in index.search(query, top=5)] == [hit.path for hit in exact]
    odd = index.search(query, top=5, where="label = 'odd'")
    assert [hit.label for hit in odd] == ["odd"] * 5
    with pytest.raises(ConfigError, match="where: "):
        index.search(query, where="nothing = 1")
    squares(folder, 33)  # a picture that the table does not name
    (folder / "metadata.jsonl").write_text((folder / "metadata.jsonl").read_text() + '{"image": "32.png"}\n')
    assert indexed(tmp_path / "i", folder, run=matryoshka_run()).num_rows == 33
    index.refresh()
    assert index.search(folder / "32.png", top=1)[0].path == "32.png"


def test_a_run_without_matryoshka_has_no_prefixes(tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(matryoshka_run(), run)
    config = (run / "config.yaml").read_text()
    assert "mrl_weight: 1.0" in config
    (run / "config.yaml").write_text(config.replace("mrl_weight: 1.0", "mrl_weight: 0.0"))  # measured, not trained
    indexed(tmp_path / "i", squares(tmp_path / "squares", 4), run=run)
    index = impresa.open_index(tmp_path / "i")
    assert (index.about.dims, index.about.prefix_dim) == ((), None)
    assert "prefix" not in index.state._store.schema.names
    assert len(index.search(index.vectors()[0])) == 4


@pytest.mark.parametrize(("asked", "dims"), [(("vision_encoder.use_mrl=true",), (128, 64)), ((), ())])
def test_dimensions_that_are_only_the_default_were_not_trained(
    monkeypatch: pytest.MonkeyPatch, asked: tuple[str, ...], dims: tuple[int, ...]
) -> None:
    width = ("vision_encoder.embed_dim=256", "text_encoder.embed_dim=256")
    config = load_experiment("shapes", [*width, *asked])
    assert 64 in config.vision_encoder.mrl_dimensions
    monkeypatch.setattr(about, "read_run_config", lambda run_dir: config)
    assert about.about_run(finished_run(), ("image",)).dims == dims


def test_the_bench_keeps_the_cheapest_that_finds_enough(tmp_path: Path) -> None:
    indexed(tmp_path / "i", table(tmp_path / "squares", 40), run=matryoshka_run())
    index = impresa.open_index(tmp_path / "i")
    found = bench.measure(index, 0.9, num_queries=20)
    assert found.num_queries == {"rows": 20, "words": 20}
    exact, *others = found.ways
    assert (exact.funnel, exact.recall) == (None, 1.0)
    assert {way.funnel.dim for way in others if way.funnel} == set(index.about.dims)
    assert all(0 <= way.recall <= 1 and way.latency_s > 0 and way.queries_per_s > 0 for way in found.ways)
    faster = [way for way in found.ways if way.queries_per_s > found.chosen.queries_per_s]
    assert found.chosen.recall >= 0.9
    assert all(way.recall < 0.9 for way in faster)
    queries, vectors = index.vectors()[:5], index.vectors()
    way = next(way for way in others if way.funnel and way.funnel.shortlist == 10)
    assert way.num_bytes == 4 * (40 * way.funnel.dim + 10 * 16) if way.funnel else False
    index.keep(way.funnel)
    kept = impresa.open_index(tmp_path / "i")
    assert kept.about.funnel == way.funnel
    assert way.funnel is not None
    prefixes = kept.prefixes(way.funnel.dim)
    rows = kept.search_vectors(queries, top=10)[1]
    for query, row in zip(queries, rows, strict=True):
        candidates = (query[: way.funnel.dim] @ prefixes.T).topk(10).indices
        assert sorted(row.tolist()) == sorted(candidates.tolist())
    kept.keep(None)
    assert torch.equal(kept.search_vectors(queries, top=10)[0], (queries @ vectors.T).topk(10).values)
    indexed(tmp_path / "few", squares(tmp_path / "four", 4))
    few = impresa.open_index(tmp_path / "few")
    with pytest.raises(DataError, match="has 4 rows, and the 10 nearest are compared; index more"):
        bench.measure(few, 0.9)
