"""One state of an index. No update changes it, so any number of threads may search it at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from threading import RLock
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from impresa.errors import ConfigError
from impresa.search.about import About, Funnel, read_about
from impresa.search.scan import exact_search, funnel_search, rerank
from impresa.search.store import OWN_COLUMNS, PREFIX, VECTOR, Store
from impresa.tasks.arguments import as_whole, shown, whole_number

EXACT_BELOW = 20_000
"""Rows up to which all numbers of all vectors are looked at, unless a dimension is asked for: it takes milliseconds."""
SHORTLIST = 20
"""Candidates for each result, where `impresa search-bench` has not found how many are needed."""
_MOST_TAKEN = 4096
"""Candidates whose vectors are read from the index one by one; for more of them all vectors are loaded."""


@dataclass(frozen=True)
class Result:
    """A row that a search has found."""

    rank: int
    """From 1."""
    score: float
    """Cosine to the query, at the full width."""
    key: str = field(repr=False)
    """Of this row alone, the same after each update."""
    id: str
    source: str
    modality: str
    path: str | None
    """Of the file, relative to the source; None if it is held in a table."""
    caption: str | None
    label: str | None
    others: dict[str, Any] = field(repr=False)
    """Cells of the data's other columns."""
    thumbnail: bytes | None = field(repr=False)
    """A JPEG of at most 128 pixels a side, of an image."""


class Snapshot:
    """Rows and vectors as they were published. Vectors are loaded when they are first needed.

    Args:
        path: of the index.
        place: where the vectors are searched.

    Raises:
        CheckpointError: there is no index, it is damaged, or unfinished.
    """

    def __init__(self, path: str, place: torch.device) -> None:
        self._store = Store.published(path)
        self.about: About = read_about(path, self._store.read_about())
        self._place = place
        self._loading = RLock()
        self._matrices: dict[int, Tensor] = {}
        self._ids: NDArray[np.uint64] | None = None
        self._allowed: tuple[str, Tensor] | None = None
        self._indexed = self._store.indexed_column()

    def __len__(self) -> int:
        return len(self._store)

    def is_current(self, about: About) -> bool:
        """False if another state is published now, which has this description."""
        return about.made == self.about.made and self._store.published_version() == self._store.version

    def read_about(self) -> str:
        """The description of the index as it is now."""
        return self._store.read_about()

    def write_about(self, about: About) -> None:
        """Describe the index anew, for all readers."""
        self.about = about
        self._store.write_about(about.to_json())

    def load_like(self, other: Snapshot) -> None:
        """Load the vectors that another state has loaded."""
        for dim in list(other._matrices):
            self.prefixes(dim)

    @property
    def columns(self) -> list[str]:
        """The columns that `where` may name."""
        return self._store.named_columns()

    def sources(self) -> list[str]:
        """The sources that rows are from, in full."""
        return self._store.sources()

    def captions(self) -> list[str]:
        """All different captions, a caption of several lines as several."""
        lines = (text.split("\n") for text in self._store.columns(["caption"])["caption"].to_pylist() if text)
        return list(dict.fromkeys(line for text in lines for line in text if line.strip()))

    def vectors(self) -> Tensor:
        """(N, E) float32, of length one, in the order of the rows; loaded once."""
        return self.prefixes(self.about.width)

    def prefixes(self, dim: int) -> Tensor:
        """(N, dim): the first numbers of all vectors, each scaled to length one by itself; loaded once. Only those of
        the index's own column are read without reading the rest."""
        with self._loading:
            if dim not in self._matrices:
                if dim in (self.about.width, self.about.prefix_dim):
                    self._ids, found = self._store.matrix(VECTOR if dim == self.about.width else PREFIX)
                else:
                    found = F.normalize(self.vectors()[:, :dim], dim=-1)
                self._matrices[dim] = found.to(self._place)
            return self._matrices[dim]

    def vector_of(self, key: str) -> Tensor | None:
        """(E,) of the row with this key; None if there is none."""
        ids = self._store.row_ids_of_key(key)
        return self._store.vectors_of(ids)[0] if ids else None

    def sound_file(self, key: str) -> Path | None:
        """Where the sound of the row with this key should lie; None if there is none, or it is held in a table."""
        row = self._store.row_of_key(key, ("modality", "source", "path"))
        if row is None or row["modality"] != "audio" or row["path"] is None:
            return None
        source, path = Path(row["source"]), PurePosixPath(row["path"])
        if path.is_absolute() or ".." in path.parts:
            return None
        return (source if source.is_dir() else source.parent) / path

    def search_vectors(
        self,
        queries: Tensor,
        *,
        top: int = 20,
        where: str | None = None,
        dim: int | None = None,
        shortlist: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Cosines (Q, K) and rows (Q, K) of the best for each of the queries (Q, E), of length one; K is `top`, or all
        rows that there are. `shortlist` is the number of candidates that a prefix of `dim` numbers proposes. Errors are
        those of `Index.search`."""
        top, funnel = whole_number("top", top), self._funnel(top, dim, shortlist)
        allowed = None if where is None else self._allowed_by(where)
        if funnel is not None and self._is_indexed(funnel):
            return self._by_index(queries, top, funnel, where)
        number, queries = len(self) if allowed is None else len(allowed), queries.to(self._place)
        if funnel is None or number <= max(top, funnel.shortlist):
            scores, rows = exact_search(queries, self._some(self.vectors(), allowed), top)
        else:
            is_few = len(queries) * funnel.shortlist <= _MOST_TAKEN
            whole = self._rows_of if is_few else self._rows_in_memory
            vectors_of = whole if allowed is None else (lambda rows: whole(allowed[rows]))
            prefixes = self._some(self.prefixes(funnel.dim), allowed)
            scores, rows = funnel_search(queries, prefixes, vectors_of, top, funnel.shortlist)
        return scores.cpu(), (rows if allowed is None else allowed[rows]).cpu()

    def results(self, scores: Tensor, rows: Tensor) -> list[Result]:
        """The rows of one query with all that the index knows of them."""
        own = ("key", "id", "source", "modality", "path", "caption", "label", "thumbnail")
        others = [name for name in self._store.schema.names if name not in OWN_COLUMNS]
        ids = [int(id) for id in self._row_ids()[rows.numpy()]]
        found = self._store.take(ids, [*own, *others]).to_pylist()
        return [
            Result(rank, score, **{name: row[name] for name in own}, others={name: row[name] for name in others})
            for rank, (score, row) in enumerate(zip(scores.tolist(), found, strict=True), start=1)
        ]

    @property
    def is_scanned(self) -> bool:
        """False if LanceDB's own index makes the shortlists, as there are too many rows to look at all."""
        return self._indexed is None

    def _funnel(self, top: int, dim: int | None, shortlist: int | None) -> Funnel | None:
        about = self.about
        usual = SHORTLIST * top if shortlist is None else whole_number("shortlist", shortlist)
        if dim is not None:
            number = as_whole(dim)
            if number is None or not 1 <= number <= about.width:
                raise ConfigError(f"dim: {shown(dim)} is not within 1 to {about.width}, the vectors' width; choose one")
            is_kept = shortlist is None and about.funnel is not None and about.funnel.dim == number
            kept = about.funnel.shortlist if is_kept and about.funnel is not None else usual
            return None if number == about.width else Funnel(number, max(kept, top))
        if about.funnel is not None:
            return Funnel(about.funnel.dim, max(about.funnel.shortlist if shortlist is None else usual, top))
        if self._indexed == VECTOR:  # there are too many rows to look at, and no prefixes
            return Funnel(about.width, max(usual, top))
        if about.exact or about.prefix_dim is None or (len(self) < EXACT_BELOW and self._indexed is None):
            return None
        return Funnel(about.prefix_dim, max(usual, top))

    def _is_indexed(self, funnel: Funnel) -> bool:
        widths = {VECTOR: self.about.width, PREFIX: self.about.prefix_dim}
        return self._indexed is not None and widths[self._indexed] == funnel.dim

    def _by_index(self, queries: Tensor, top: int, funnel: Funnel, where: str | None) -> tuple[Tensor, Tensor]:
        """The shortlist by LanceDB's own index; each query has its own."""
        assert self._indexed is not None
        found = []
        for query in queries:
            ids = self._store.neighbours(self._indexed, query[: funnel.dim], funnel.shortlist, where)
            rows = torch.from_numpy(np.searchsorted(self._row_ids(), np.sort(ids)))[None]
            found.append(rerank(query[None].to(self._place), rows.to(self._place), self._rows_of, top))
        fewest = min(scores.shape[1] for scores, _ in found)
        scores, rows = (torch.cat([part[which][:, :fewest] for part in found]).cpu() for which in (0, 1))
        return scores, rows

    @staticmethod
    def _some(vectors: Tensor, allowed: Tensor | None) -> Tensor:
        return vectors if allowed is None else vectors[allowed]

    def _rows_in_memory(self, rows: Tensor) -> Tensor:
        return self.vectors().index_select(0, rows)

    def _rows_of(self, rows: Tensor) -> Tensor:
        """Whole vectors of a few rows: from memory if they are there, else from the index alone."""
        if self.about.width in self._matrices:
            return self._rows_in_memory(rows)
        return self._store.vectors_of([int(id) for id in self._row_ids()[rows.cpu().numpy()]]).to(self._place)

    def _row_ids(self) -> NDArray[np.uint64]:
        with self._loading:
            if self._ids is None:
                self._ids = self._store.row_ids()
            return self._ids

    def _allowed_by(self, where: str) -> Tensor:
        """Rows that fulfil a condition, ascending; the last condition's are kept."""
        last = self._allowed  # read once: another thread may have another condition
        if last is None or last[0] != where:
            rows = np.searchsorted(self._row_ids(), self._store.row_ids(where)).astype(np.int64)
            last = self._allowed = (where, torch.from_numpy(rows).to(self._place))
        return last[1]
