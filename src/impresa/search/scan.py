"""Finding the nearest of many vectors with torch: exactly, or by a funnel.

A funnel first looks at the first numbers of each vector alone (a Matryoshka prefix, which is a vector in its own right)
and ranks the best candidates anew by all numbers; Kusupati et al. (2022) call it adaptive retrieval.

Letters: Q queries, N vectors, W their width, E the full one, P that of prefixes, S candidates, G vectors of a group.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_GROUP = 16
"""G: of all products only the largest of each group is kept, and the best groups are multiplied again. So no product
leaves the processor's cache, and what is sorted is a sixteenth."""
_ROWS_AT_A_TIME = 2048
"""Of a product, so that it stays in the cache."""
_QUERIES_AT_A_TIME = 256
_EQUAL = 1e-6
"""Products that differ by less are equal."""


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
    if len(vectors) // _GROUP <= 2 * number:
        products, rows = (queries @ vectors.T).topk(number, dim=1, sorted=False)
        return products, rows
    parts = [_nearest_by_groups(part, vectors, number) for part in queries.split(_QUERIES_AT_A_TIME)]
    products, rows = (torch.cat(found) for found in zip(*parts, strict=True))
    return products, rows


def _nearest_by_groups(queries: Tensor, vectors: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """`nearest` for a few queries and many vectors: the best S lie in the S groups with the largest products."""
    whole = len(vectors) // _GROUP * _GROUP
    maxima = queries.new_empty(whole // _GROUP, len(queries))
    products = queries.new_empty(_ROWS_AT_A_TIME, len(queries))
    for start in range(0, whole, _ROWS_AT_A_TIME):
        rows = vectors[start : min(start + _ROWS_AT_A_TIME, whole)]
        part = torch.mm(rows, queries.T, out=products[: len(rows)])
        maxima[start // _GROUP : (start + len(rows)) // _GROUP] = part.unflatten(0, (-1, _GROUP)).amax(dim=1)
    groups = maxima.T.contiguous().topk(number, dim=1, sorted=False).indices
    grouped, rest = vectors[:whole].unflatten(0, (-1, _GROUP)), vectors[whole:]
    best = []
    for query, some in zip(queries, groups, strict=True):  # one gather for all would be slower
        again = torch.cat([(grouped.index_select(0, some) @ query).flatten(), rest @ query])
        best.append(again.topk(number, sorted=False))
    found, places = (torch.stack(list(part)) for part in zip(*best, strict=True))
    within = places.clamp(max=number * _GROUP - 1)
    rows = groups.gather(1, within // _GROUP) * _GROUP + within % _GROUP
    return found, torch.where(places < number * _GROUP, rows, whole + places - number * _GROUP)


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


def recall_of(found: Tensor, exact: Tensor) -> float:
    """Share of the nearest that were found, by the products of both (Q, top): of rows that are equally near, such as
    copies of a picture, any will do."""
    return (found >= exact[:, -1:] - _EQUAL).sum().item() / exact.numel() if exact.numel() else 1.0


def rerank(queries: Tensor, rows: Tensor, vectors_of: Callable[[Tensor], Tensor], top: int) -> tuple[Tensor, Tensor]:
    """The best of each query's candidates (Q, S) by all numbers. Query by query, as one gather would be slower."""
    products = [vectors_of(found) @ query for query, found in zip(queries, rows, strict=True)]
    return ranked(torch.stack(products), rows, top)
