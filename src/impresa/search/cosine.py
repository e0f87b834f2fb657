"""The nearest of a corpus for each query, exactly, without ever holding all similarities."""

from __future__ import annotations

from typing import TypedDict

import torch
from torch import Tensor
from torch.nn import functional as F

from impresa.tasks.arguments import Vectors, of_one_width, whole_number
from impresa.tasks.devices import cpu_by_default


class Hit(TypedDict):
    """An embedding of the corpus that a query has found."""

    corpus_id: int
    """Its row."""
    score: float
    """Cosine between the two."""


@cpu_by_default()
def semantic_search(
    queries: Vectors,
    corpus: Vectors,
    top_k: int = 10,
    *,
    query_chunk_size: int = 100,
    corpus_chunk_size: int = 100_000,
) -> list[list[Hit]]:
    """The `top_k` embeddings of a corpus with the highest cosine to each query, the highest first.

    Equal cosines stand in the order of the corpus. It is computed where `queries` are; the chunks bound the memory, and
    change nothing else.

    Args:
        queries: (Q, E), or (E,) for a single one.
        corpus: (N, E), float32 as `encode_*` gives it, not quantised.
        top_k: hits of each query; all of a smaller corpus.
        query_chunk_size: queries at a time.
        corpus_chunk_size: rows of the corpus at a time.

    Returns:
        A list of hits for each of the Q queries, as `sentence_transformers.util.semantic_search` has it.

    Raises:
        DataError: an argument holds no embeddings, the two differ in width, or a number is none from 1.
    """
    rows, others = of_one_width(("queries", "corpus"), queries, corpus)
    most = whole_number("top_k", top_k)
    sizes = whole_number("query_chunk_size", query_chunk_size), whole_number("corpus_chunk_size", corpus_chunk_size)
    found: list[list[Hit]] = []
    for part in rows.split(sizes[0]) if len(rows) else ():
        found += _search(F.normalize(part, dim=-1), others, most, sizes[1])
    return found


def _search(queries: Tensor, corpus: Tensor, most: int, chunk_size: int) -> list[list[Hit]]:
    scores, ids = queries.new_zeros(len(queries), 0), torch.zeros(len(queries), 0, dtype=torch.int64)
    ids = ids.to(queries.device)
    for start in range(0, len(corpus), chunk_size):
        new = queries @ F.normalize(corpus[start : start + chunk_size], dim=-1).T
        numbers = torch.arange(start, start + new.shape[1], device=ids.device).expand(len(queries), -1)
        scores, ids = torch.cat([scores, new], dim=1), torch.cat([ids, numbers], dim=1)
        best = _highest(scores, most)
        scores, ids = scores.gather(1, best), ids.gather(1, best)
    return [
        [Hit(corpus_id=id, score=score) for id, score in zip(*row, strict=True)]
        for row in zip(ids.tolist(), scores.tolist(), strict=True)
    ]


def _highest(scores: Tensor, most: int) -> Tensor:
    """(Q, K) columns of the highest scores (Q, N), highest first, of equal ones the first; K is `most`, or N."""
    most = min(most, scores.shape[1])
    last = scores.topk(most, dim=1).values[:, -1:]  # torch promises no order among equal ones
    is_above, is_last = scores > last, scores == last
    room = most - is_above.sum(dim=1, keepdim=True)
    columns = (is_above | (is_last & (is_last.cumsum(dim=1) <= room))).nonzero()[:, 1].view(len(scores), most)
    return columns.gather(1, scores.gather(1, columns).sort(dim=1, descending=True, stable=True).indices)
