"""How well and how fast an index is searched by each dimension and shortlist, against the exact search of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from rich.progress import Progress
from torch import Tensor

from impresa.errors import DataError
from impresa.search.about import Funnel
from impresa.search.index import Index
from impresa.search.scan import exact_search, funnel_search, recall_of

TOP = 10
SHORTLISTS = (10, 20, 50, 100, 200, 500)
_FEWEST_CAPTIONS = 32
_SINGLE_QUERIES = 8
_ROUNDS = 3
_BYTES = 4


@dataclass(frozen=True)
class Measured:
    """One way to search."""

    funnel: Funnel | None
    """None for the exact search."""
    recall: float
    """Share of the exact ten nearest that it finds: of words and of pictures, whichever is less."""
    latency_s: float
    """Of one query, median."""
    queries_per_s: float
    """Of all queries together."""
    num_bytes: int
    """Of vectors that are read for each query."""


@dataclass(frozen=True)
class Bench:
    """All ways, the exact one first, and the cheapest that finds enough."""

    ways: list[Measured]
    chosen: Measured
    num_queries: dict[str, int]
    """By their kind: `words` are captions, `rows` the index's own vectors."""


def queries_of(index: Index, number: int) -> dict[str, Tensor]:
    """Up to `number` queries (Q, E) of each kind: captions, where there are enough, and vectors of the index itself."""
    vectors = index.vectors()
    draw = torch.Generator().manual_seed(0)
    found = {"rows": vectors[torch.randperm(len(vectors), generator=draw)[:number]]}
    captions = index.captions()
    if len(captions) >= _FEWEST_CAPTIONS:
        chosen = torch.randperm(len(captions), generator=draw)[:number].tolist()
        found["words"] = index.model.encode_text([captions[place] for place in chosen]).to(vectors.device)
    return found


def measure(index: Index, recall: float, *, num_queries: int = 256, bar: Progress | None = None) -> Bench:
    """Measure all ways and choose the fastest among those that reach a recall; nothing is kept. Fewest bytes would not
    do: a short prefix needs so many candidates that ranking them anew takes longer than a longer one.

    Args:
        index: is loaded whole.
        recall: wanted share of the exact ten nearest, from 0 to 1.
        num_queries: of each kind.
        bar: shows how far it is.

    Raises:
        DataError: the index has fewer than eleven rows.
    """
    if len(index) <= TOP:
        raise DataError(f"{index.path}: has {len(index)} rows, and the {TOP} nearest are compared; index more")
    queries, vectors = queries_of(index, num_queries), index.vectors()
    exact = {kind: exact_search(some, vectors, TOP)[0] for kind, some in queries.items()}
    ways: Iterable[Funnel | None] = [None, *_ways(index.about.dims, len(index))]
    ways = ways if bar is None else bar.track(ways, description="measuring")
    measured = [_measure(index, funnel, queries, exact) for funnel in ways]
    enough = [way for way in measured if way.recall >= recall]  # the exact one is among them
    chosen = max(enough, key=lambda way: way.queries_per_s)
    return Bench(measured, chosen, {kind: len(some) for kind, some in queries.items()})


def _ways(dims: Sequence[int], num_rows: int) -> Iterator[Funnel]:
    for dim in dims:
        yield from (Funnel(dim, size) for size in SHORTLISTS if size < num_rows or size == TOP)


def _measure(index: Index, funnel: Funnel | None, queries: dict[str, Tensor], exact: dict[str, Tensor]) -> Measured:
    vectors = index.vectors()
    search: Callable[[Tensor], tuple[Tensor, Tensor]]
    if funnel is None:
        num_bytes = _BYTES * vectors.numel()
        search = lambda some: exact_search(some, vectors, TOP)  # noqa: E731
    else:
        prefixes, size = index.prefixes(funnel.dim), funnel.shortlist
        num_bytes = _BYTES * (prefixes.numel() + size * vectors.shape[1])
        search = lambda some: funnel_search(some, prefixes, lambda rows: vectors.index_select(0, rows), TOP, size)  # noqa: E731
    recall = min(recall_of(search(some)[0], exact[kind]) for kind, some in queries.items())
    every = torch.cat(list(queries.values()))
    together = min(_seconds(lambda: search(every)) for _ in range(_ROUNDS))
    singles = sorted(_seconds(lambda query=query: search(query)) for query in every[:_SINGLE_QUERIES].split(1))  # type: ignore[misc]
    return Measured(funnel, recall, singles[len(singles) // 2], len(every) / together, num_bytes)


def _seconds(work: Callable[[], tuple[Tensor, Tensor]]) -> float:
    start = time.perf_counter()
    work()[0].cpu()  # which waits for a GPU
    return time.perf_counter() - start
