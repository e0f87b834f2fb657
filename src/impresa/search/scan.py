"""Finding the nearest of many vectors with torch: exactly, or by a funnel.

A funnel first looks at the first numbers of each vector alone (a Matryoshka prefix, which is a vector in its own right)
and ranks the best candidates anew by all numbers; Kusupati et al. (2022) call it adaptive retrieval.

Letters: Q queries, N vectors, E their width, P that of prefixes, S candidates, G vectors of a group.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_GROUP = 64
"""G: only groups that hold one of the best are looked into again. Finding each group's maximum is one pass over scores
that are still in the processor's cache, where sorting out the best of N scores would take as long as the product."""
_ROWS_AT_A_TIME = 4096
"""Of a product, so that its scores stay in the cache."""
_SCORES_AT_A_TIME = 1 << 26
"""That are held at once, 256 MiB of them."""


def nearest(queries: Tensor, vectors: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """The `number` largest inner products of each query, in no order; of equal ones any.

    Args:
        queries: (Q, W).
        vectors: (N, W), on the same device.
        number: S; all of fewer vectors.

    Returns:
        Products (Q, S) and rows (Q, S).
    """
    number = min(number, len(vectors))
    products = queries.new_empty(len(queries), 0)
    rows = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
    step = max(_SCORES_AT_A_TIME // max(len(queries), 1) // _ROWS_AT_A_TIME, 1) * _ROWS_AT_A_TIME
    for start in range(0, len(vectors), step):
        best, places = _nearest_within(queries, vectors[start : start + step], number)
        products, rows = torch.cat([products, best], dim=1), torch.cat([rows, places + start], dim=1)
        if products.shape[1] > number:
            products, kept = products.topk(number, dim=1, sorted=False)
            rows = rows.gather(1, kept)
    return products, rows


def _nearest_within(queries: Tensor, vectors: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """`nearest` with all scores held at once."""
    num_groups = len(vectors) // _GROUP
    whole = num_groups * _GROUP
    if num_groups <= 2 * number:
        return (queries @ vectors.T).topk(min(number, len(vectors)), dim=1, sorted=False)
    scores = queries.new_empty(len(queries), len(vectors))
    maxima = queries.new_empty(len(queries), num_groups)
    for start in range(0, len(vectors), _ROWS_AT_A_TIME):
        end = min(start + _ROWS_AT_A_TIME, len(vectors))
        part = torch.mm(queries, vectors[start:end].T, out=scores[:, start:end])
        groups = slice(start // _GROUP, min(end, whole) // _GROUP)
        grouped = part[:, : (groups.stop - groups.start) * _GROUP].unflatten(1, (-1, _GROUP))
        torch.amax(grouped, dim=-1, out=maxima[:, groups])
    groups_of_best = maxima.topk(number, dim=1, sorted=False).indices  # the best S lie in at most S groups
    columns = (groups_of_best[..., None] * _GROUP + torch.arange(_GROUP, device=queries.device)).flatten(1)
    rest = torch.arange(whole, len(vectors), device=queries.device).expand(len(queries), -1)
    columns = torch.cat([columns, rest], dim=1)
    best, kept = scores.gather(1, columns).topk(number, dim=1, sorted=False)
    return best, columns.gather(1, kept)


def ranked(products: Tensor, rows: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """The `top` best of some candidates (Q, S), the highest first, of equal ones that of the lowest row."""
    rows, order = rows.sort(dim=1)
    products, order = products.gather(1, order).sort(dim=1, descending=True, stable=True)
    return products[:, :top], rows.gather(1, order)[:, :top]


def exact_search(queries: Tensor, vectors: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """The nearest vectors by all numbers: products (Q, top) and rows (Q, top), the highest first."""
    return ranked(*nearest(queries, vectors, top), top)


def funnel_search(
    queries: Tensor, prefixes: Tensor, vectors_of: Callable[[Tensor], Tensor], top: int, shortlist: int
) -> tuple[Tensor, Tensor]:
    """The nearest among the candidates that the prefixes name: products (Q, top) and rows (Q, top), the highest first.

    Args:
        queries: (Q, E).
        prefixes: (N, P), of length one.
        vectors_of: gives the whole vectors (S, E) of rows (S,).
        top: results of each query.
        shortlist: S, candidates of each query.
    """
    firsts = queries[:, : prefixes.shape[1]]  # the length of a query's prefix changes no order
    _, rows = nearest(firsts.contiguous(), prefixes, max(shortlist, top))
    return rerank(queries, rows, vectors_of, top)


def rerank(queries: Tensor, rows: Tensor, vectors_of: Callable[[Tensor], Tensor], top: int) -> tuple[Tensor, Tensor]:
    """The best of each query's candidates (Q, S) by all numbers. Query by query, as one gather would be slower."""
    products = [vectors_of(found) @ query for query, found in zip(queries, rows, strict=True)]
    return ranked(torch.stack(products), rows, top)
