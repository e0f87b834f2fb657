"""An index in use: `impresa.open_index` returns one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from impresa.config.paths import expanded
from impresa.errors import ConfigError, DataError
from impresa.run_dir.load import load_embedder, read_run_config
from impresa.search.about import About, Funnel, check_golden_vectors, check_run, read_about
from impresa.search.opening import open_readers, source_names
from impresa.search.query import Query, listed, query_of
from impresa.search.scan import exact_search, funnel_search, rerank
from impresa.search.store import OWN_COLUMNS, PREFIX, VECTOR, Store
from impresa.search.update import Updated, update_index
from impresa.tasks.arguments import as_whole, shown, whole_number
from impresa.tasks.devices import Device, usable_device

if TYPE_CHECKING:
    from impresa.tasks.alignment.embedder import EmbeddingModel

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


def open_index(path: Path | str, *, run: Path | str | None = None, device: Device | None = None) -> Index:
    """An index that `impresa index` has made, as it is now; an update shows after `refresh`.

    Args:
        path: the folder, or an address in object storage.
        run: the run, if it lies elsewhere than when the index was made.
        device: where the model computes and the vectors are searched; None stands for the model's default and the CPU.

    Raises:
        CheckpointError: there is no index, it is damaged, unfinished, or of another model than the run.
    """
    return Index(str(path), None if run is None else expanded(str(run)), device)


class Index:
    """Rows, their vectors and the run that made them. Vectors are loaded with the first search, the model with the
    first query that is no vector."""

    def __init__(self, path: str, run: Path | None, device: Device | None) -> None:
        self.path = path
        self._device = device
        self._place = torch.device("cpu") if device is None else usable_device(device)
        self._store = Store.published(path)
        self.about: About = read_about(path, self._store.read_about())
        self.run_dir = Path(self.about.run) if run is None else run
        if run is not None or self.run_dir.is_dir():
            check_run(path, self.about, self.run_dir)
        self._forget()

    def _forget(self) -> None:
        self._matrices: dict[int, Tensor] = {}
        self._ids: NDArray[np.uint64] | None = None
        self._allowed: tuple[str, Tensor] | None = None
        self._indexed = self._store.indexed_column()

    def __len__(self) -> int:
        return len(self._store)

    def __repr__(self) -> str:
        about = self.about
        dims = ", ".join(map(str, (about.width, *about.dims)))
        return f"Index({self.path!r}: {len(self):,} rows, run {about.name} at {self.run_dir}, dims {dims})"

    @property
    def columns(self) -> list[str]:
        """The columns that `where` may name."""
        return self._store.named_columns()

    @cached_property
    def model(self) -> EmbeddingModel:
        """The run's model; `CheckpointError` if it is not the one that the index was made with."""
        check_run(self.path, self.about, self.run_dir)
        model = load_embedder(self.run_dir, self._device)
        check_golden_vectors(self.path, self.about, model)
        return model

    def refresh(self) -> bool:
        """Go to the state that was published last; true if it is another one."""
        before = self._store.version
        self._store.checkout()
        self.about = read_about(self.path, self._store.read_about())
        if self._store.version == before:
            return False
        self._forget()
        return True

    def update(self, sources: Iterable[str | Path] = (), *, batch_size: int = 32) -> Updated:
        """Bring sources up to date, all that the index has if none is named; then the index shows the new state.

        Errors: see `impresa.search.update.update_index`.
        """
        names = source_names(map(str, sources)) or self.sources()
        config, modalities = read_run_config(self.run_dir), self.about.modalities
        done = update_index(
            self.path,
            self.run_dir,
            lambda: open_readers(config, names, modalities),
            lambda: self.model,
            modalities=modalities,
            batch_size=batch_size,
        )
        self.refresh()
        return done

    def sources(self) -> list[str]:
        """The sources that rows are from, in full."""
        return self._store.sources()

    def search(
        self,
        query: Any = None,
        *,
        text: str | Sequence[str] = (),
        image: Any = (),
        sound: Any = (),
        without: Any = (),
        weight: float = 0.5,
        top: int = 20,
        where: str | None = None,
        dim: int | None = None,
    ) -> list[Result]:
        """The rows with the highest cosine to a query, the highest first.

        Args:
            query: words, a picture, a sound or the path of one, several of them as a list; or, with nothing beside it,
                a `Query` or a vector (E,).
            text, image, sound: the same by their kind, one or a list; they go with `query`.
            without: what the results must not be like, one or a list; see `Query` for what that does.
            weight: of the words beside examples, from 0 to 1.
            top: number of results; all of a smaller index.
            where: a condition in SQL, such as `label = 'cat' AND year > 2000`.
            dim: look at the first `dim` numbers alone and rank the best anew by all; the full width is an exact search.
                None is what `impresa search-bench` has found, or else the usual.

        Raises:
            ConfigError: the condition is none.
            DataError: there is nothing to search for, or an input cannot be read.
            CheckpointError: the run is gone, or is not the one that the index was made with.
        """
        beside = Query(listed(text), listed(image), listed(sound), listed(without), weight)
        vector = self._vector_of(query, beside)
        scores, rows = self.search_vectors(vector[None], top=top, where=where, dim=dim)
        return self.results(scores[0], rows[0])

    def _vector_of(self, query: Any, beside: Query) -> Tensor:
        """(E,) of a query and what was given beside it."""
        if isinstance(query, Tensor | np.ndarray) and query.ndim == 1:
            vector = torch.as_tensor(query)
            if len(vector) != self.about.width or not vector.is_floating_point() or not vector.isfinite().all():
                raise DataError(f"query: is no vector of {self.about.width} finite numbers; give one of this model")
            return F.normalize(vector.float().cpu(), dim=0)
        if isinstance(query, Query):
            return query.vector(self.model)
        return (beside if query is None else query_of(query).joined(beside)).vector(self.model)

    def search_vectors(
        self, queries: Tensor, *, top: int = 20, where: str | None = None, dim: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Cosines (Q, K) and rows (Q, K) of the best for each of the queries (Q, E), of length one; K is `top`, or all
        rows that there are. Errors are those of `search`."""
        top, funnel = whole_number("top", top), self._funnel(top, dim)
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
        own = ("id", "source", "modality", "path", "caption", "label", "thumbnail")
        others = [name for name in self._store.schema.names if name not in OWN_COLUMNS]
        ids = [int(id) for id in self._row_ids()[rows.numpy()]]
        found = self._store.take(ids, [*own, *others]).to_pylist()
        return [
            Result(rank, score, **{name: row[name] for name in own}, others={name: row[name] for name in others})
            for rank, (score, row) in enumerate(zip(scores.tolist(), found, strict=True), start=1)
        ]

    def vectors(self) -> Tensor:
        """(N, E) float32, of length one, in the order of the rows; loaded once."""
        return self.prefixes(self.about.width)

    def prefixes(self, dim: int) -> Tensor:
        """(N, dim): the first numbers of all vectors, each scaled to length one by itself; loaded once. Only those of
        the index's own column are read without reading the rest."""
        if dim not in self._matrices:
            if dim in (self.about.width, self.about.prefix_dim):
                ids, found = self._store.matrix(VECTOR if dim == self.about.width else PREFIX)
                self._ids = ids
            else:
                found = F.normalize(self.vectors()[:, :dim], dim=-1)
            self._matrices[dim] = found.to(self._place)
        return self._matrices[dim]

    def captions(self) -> list[str]:
        """All different captions, a caption of several lines as several."""
        lines = (text.split("\n") for text in self._store.columns(["caption"])["caption"].to_pylist() if text)
        return list(dict.fromkeys(line for text in lines for line in text if line.strip()))

    def keep(self, funnel: Funnel | None) -> None:
        """Search by this from now on; None is the exact search."""
        self.about = replace(self.about, funnel=funnel, exact=funnel is None)
        self._store.write_about(self.about.to_json())

    def _funnel(self, top: int, dim: int | None) -> Funnel | None:
        about, usual = self.about, SHORTLIST * top
        if dim is not None:
            number = as_whole(dim)
            if number is None or not 1 <= number <= about.width:
                raise ConfigError(f"dim: {shown(dim)} is not within 1 to {about.width}, the vectors' width; choose one")
            kept = about.funnel.shortlist if about.funnel and about.funnel.dim == number else usual
            return None if number == about.width else Funnel(number, max(kept, top))
        if about.funnel is not None:
            return Funnel(about.funnel.dim, max(about.funnel.shortlist, top))
        if self._indexed == VECTOR:  # there are too many rows to look at, and no prefixes
            return Funnel(about.width, usual)
        if about.exact or about.prefix_dim is None or (len(self) < EXACT_BELOW and self._indexed is None):
            return None
        return Funnel(about.prefix_dim, usual)

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
        if self._ids is None:
            self._ids = self._store.row_ids()
        return self._ids

    def _allowed_by(self, where: str) -> Tensor:
        """Rows that fulfil a condition, ascending; the last condition's are kept."""
        if self._allowed is None or self._allowed[0] != where:
            rows = np.searchsorted(self._row_ids(), self._store.row_ids(where)).astype(np.int64)
            self._allowed = (where, torch.from_numpy(rows).to(self._place))
        return self._allowed[1]
