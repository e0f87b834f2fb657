"""`impresa.semantic_search` finds what that of sentence-transformers finds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sentence_transformers import util

import impresa


@pytest.mark.parametrize("top_k", [1, 7, 500])
def test_hits_and_scores_are_those_of_the_library(top_k: int) -> None:
    queries, corpus = torch.randn(130, 16), torch.randn(300, 16)
    expected = util.semantic_search(queries, corpus, top_k=top_k)
    found = impresa.semantic_search(queries.numpy(), corpus, top_k, corpus_chunk_size=77)
    assert [[hit.keys() for hit in hits] for hits in found] == [[hit.keys() for hit in hits] for hits in expected]
    for ours, theirs in zip(found, expected, strict=True):
        assert [hit["corpus_id"] for hit in ours] == [hit["corpus_id"] for hit in theirs]
        assert np.allclose([hit["score"] for hit in ours], [hit["score"] for hit in theirs], atol=1e-6)
