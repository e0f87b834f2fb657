"""`impresa.semantic_search`: the order, equal scores, chunks, and inputs."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch

import impresa
from impresa.errors import DataError
from impresa.search.cosine import Hit


def ids(found: list[list[Hit]]) -> list[list[int]]:
    return [[hit["corpus_id"] for hit in hits] for hits in found]


def test_chunks_change_nothing() -> None:
    queries, corpus = torch.randn(7, 5), torch.randn(23, 5)
    whole = impresa.semantic_search(queries, corpus, top_k=6)
    for sizes in ((1, 1), (3, 4), (7, 6), (100, 22)):
        parts = impresa.semantic_search(queries, corpus, 6, query_chunk_size=sizes[0], corpus_chunk_size=sizes[1])
        assert ids(parts) == ids(whole)
        for one, other in zip(parts, whole, strict=True):
            assert [hit["score"] for hit in one] == pytest.approx([hit["score"] for hit in other], abs=1e-6)


def test_scores_are_cosines_from_high_to_low() -> None:
    queries, corpus = 3 * torch.randn(4, 5), torch.randn(9, 5)
    cosines = torch.cosine_similarity(queries[:, None], corpus[None], dim=-1)
    for hits, row in zip(impresa.semantic_search(queries, corpus), cosines, strict=True):
        expected = row.sort(descending=True)
        assert [hit["corpus_id"] for hit in hits] == expected.indices.tolist()
        assert [hit["score"] for hit in hits] == pytest.approx(expected.values.tolist(), abs=1e-6)


@pytest.mark.parametrize("chunk", [2, 3, 100])
def test_of_equal_scores_the_first_rows_are_found(chunk: int) -> None:
    corpus = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    for most, expected in ((1, [1]), (2, [1, 3]), (3, [1, 3, 4]), (4, [1, 3, 4, 0]), (9, [1, 3, 4, 0, 2, 5])):
        assert ids(impresa.semantic_search([1.0, 0.0], corpus, most, corpus_chunk_size=chunk)) == [expected]


def test_arrays_lists_and_nothing() -> None:
    queries, corpus = np.random.default_rng(0).normal(size=(2, 3)), np.random.default_rng(1).normal(size=(4, 3))
    expected = ids(impresa.semantic_search(torch.tensor(queries), torch.tensor(corpus)))
    assert ids(impresa.semantic_search(queries.astype(np.float16).tolist(), list(corpus))) == expected
    assert impresa.semantic_search([], corpus) == []
    assert impresa.semantic_search(queries, []) == [[], []]


@pytest.mark.parametrize(
    ("corpus", "options", "line"),
    [
        (
            torch.zeros(2, 4),
            {},
            "corpus: embeddings of 4 numbers, and those of queries have 3; embed both with the same",
        ),
        ("words", {}, "corpus: got str"),
        (torch.zeros(2, 3, dtype=torch.int8), {}, "corpus: holds quantised embeddings, whose cosines are other ones"),
        (torch.full((2, 3), torch.nan), {}, "corpus[0]: holds numbers that are not finite"),
        (torch.zeros(2, 3), {"top_k": 0}, "top_k: 0 is not a whole number from 1; give one"),
        (torch.zeros(2, 3), {"corpus_chunk_size": 0.5}, "corpus_chunk_size: 0.5 is not a whole number from 1"),
    ],
)
def test_what_cannot_be_searched_is_refused(corpus: Any, options: dict[str, Any], line: str) -> None:
    with pytest.raises(DataError, match=f"^{re.escape(line)}"):
        impresa.semantic_search(torch.ones(1, 3), corpus, **options)
