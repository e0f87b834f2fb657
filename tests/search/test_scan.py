"""The scan of an index: equal to the plain product and sort, whatever the sizes."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from impresa.search import scan


def unit(number: int, width: int, seed: int = 0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(number, width, generator=draw), dim=-1)


@pytest.mark.parametrize("number", [0, 1, 63, 64, 65, 1000, 5000, 9001])
@pytest.mark.parametrize("top", [1, 10, 70])
def test_the_exact_search_is_that_of_a_plain_sort(number: int, top: int) -> None:
    queries, vectors = unit(3, 24, 1), unit(number, 24)
    scores, rows = scan.exact_search(queries, vectors, top)
    expected = (queries @ vectors.T).sort(dim=1, descending=True)
    assert torch.equal(rows, expected.indices[:, :top])
    assert torch.allclose(scores, expected.values[:, :top], atol=1e-6)


def test_few_queries_and_rows_at_a_time_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, vectors = unit(5, 16, 1), unit(3003, 16)
    whole = scan.exact_search(queries, vectors, 12)
    monkeypatch.setattr(scan, "_QUERIES_AT_A_TIME", 2)
    monkeypatch.setattr(scan, "_ROWS_AT_A_TIME", 32)
    assert torch.equal(scan.exact_search(queries, vectors, 12)[1], whole[1])


def test_of_equal_products_the_lower_row_stands_first() -> None:
    vectors = unit(2, 8).repeat(3, 1)
    assert scan.exact_search(vectors[:1], vectors, 4)[1][0, :3].tolist() == [0, 2, 4]


def test_copies_are_as_good_as_each_other() -> None:
    exact = torch.tensor([[0.9, 0.5, 0.5], [0.8, 0.7, 0.6]])
    assert scan.recall_of(torch.tensor([[0.9, 0.5, 0.5], [0.8, 0.6, 0.2]]), exact) == pytest.approx(5 / 6)
    assert scan.recall_of(torch.zeros(1, 0), torch.zeros(1, 0)) == 1.0


def test_a_funnel_ranks_its_candidates_by_all_numbers() -> None:
    queries, vectors = unit(4, 32, 1), unit(2000, 32)
    prefixes = F.normalize(vectors[:, :8], dim=-1)
    taken: list[int] = []

    def vectors_of(rows: torch.Tensor) -> torch.Tensor:
        taken.append(len(rows))
        return vectors[rows]

    scores, rows = scan.funnel_search(queries, prefixes, vectors_of, 5, 50)
    assert taken == [50] * 4
    candidates = (queries[:, :8] @ prefixes.T).topk(50, dim=1).indices
    for query, found, values, some in zip(queries, rows, scores, candidates, strict=True):
        best = (vectors[some] @ query).sort(descending=True)
        assert found.tolist() == some[best.indices[:5]].tolist()
        assert torch.allclose(values, best.values[:5], atol=1e-6)
    everything = scan.funnel_search(queries, prefixes, vectors_of, 5, 2000)[1]
    assert torch.equal(everything, scan.exact_search(queries, vectors, 5)[1])
