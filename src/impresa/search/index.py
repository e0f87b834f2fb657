"""An index in use: `impresa.open_index` returns one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from impresa.config.paths import expanded
from impresa.errors import CheckpointError, DataError
from impresa.run_dir.load import load_embedder, read_run_config
from impresa.search.about import About, Funnel, check_golden_vectors, check_run, read_about
from impresa.search.opening import open_readers, source_names
from impresa.search.query import Query, listed, query_of
from impresa.search.snapshot import Result, Snapshot
from impresa.search.update import Updated, update_index
from impresa.tasks.arguments import Vectors, is_number, kind, shown, vectors_of
from impresa.tasks.devices import Device, cpu_by_default, usable_device

if TYPE_CHECKING:
    from impresa.tasks.alignment.embedder import EmbeddingModel


def open_index(path: Path | str, *, run: Path | str | None = None, device: Device | None = None) -> Index:
    """An index that `impresa index` has made, as it is now; an update shows after `refresh`.

    Args:
        path: the folder, or an address in object storage.
        run: the run, if it lies elsewhere than when the index was made.
        device: where the model computes and the vectors are searched; None stands for the model's default and the CPU.

    Raises:
        CheckpointError: there is no index, it is damaged, unfinished, or of another model than the run.
    """
    if not isinstance(path, str | Path) or not str(path).strip():
        raise CheckpointError(f"path: got {shown(path)}; give that of an index, which `impresa index` printed")
    return Index(str(path), None if run is None else expanded(str(run)), device)


class Index:
    """Rows, their vectors and the run that made them. Vectors are loaded with the first search, the model with the
    first query that is no vector.

    Threads may share one: each search is of one state, and a `refresh` beside it changes only later ones. The model
    embeds one query at a time. A copy, also one that is sent to another process, is opened anew.
    """

    def __init__(self, path: str, run: Path | None, device: Device | None) -> None:
        self.path = path
        self._run, self._device = run, device
        self._place = torch.device("cpu") if device is None else usable_device(device)
        self._state = Snapshot(path, self._place)
        self._model: EmbeddingModel | None = None
        self._model_in_use, self._refreshing = RLock(), RLock()
        self.run_dir = Path(self.about.run) if run is None else run
        if run is not None or self.run_dir.is_dir():
            check_run(path, self.about, self.run_dir)

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process opens it anew, as it is then."""
        return Index, (self.path, self._run, self._device)

    @property
    def state(self) -> Snapshot:
        """The state that searches see now."""
        return self._state

    @property
    def about(self) -> About:
        return self._state.about

    def __len__(self) -> int:
        return len(self._state)

    def __repr__(self) -> str:
        about = self.about
        dims = ", ".join(map(str, (about.width, *about.dims)))
        return f"Index({self.path!r}: {len(self):,} rows, run {about.name} at {self.run_dir}, dims {dims})"

    @property
    def columns(self) -> list[str]:
        """The columns that `where` may name."""
        return self._state.columns

    @property
    def model(self) -> EmbeddingModel:
        """The run's model; `CheckpointError` if it is not the one that the index was made with."""
        with self._model_in_use:
            if self._model is None:
                check_run(self.path, self.about, self.run_dir)
                self.use(load_embedder(self.run_dir, self._device))
            assert self._model is not None
            return self._model

    def use(self, model: EmbeddingModel) -> None:
        """Embed queries with a model of the run that is loaded already. Raises `CheckpointError` as `model`."""
        check_golden_vectors(self.path, self.about, model)
        self._model = model

    def refresh(self) -> bool:
        """Go to the state that was published last; true if it is another one.

        Raises:
            CheckpointError: the index is gone, damaged, or was made anew by another model.
        """
        with self._refreshing:
            before = self._state
            about = read_about(self.path, before.read_about())
            if (about.weights, about.preprocessing) != (self.about.weights, self.about.preprocessing):
                raise CheckpointError(
                    f"{self.path}: is of another model now ({about.name}, {about.run}); open it again"
                )
            if before.is_current(about):
                before.about = about
                return False
            state = Snapshot(self.path, self._place)
            state.load_like(before)  # so that no search waits for it
            self._state = state
            return True

    @cpu_by_default()
    def update(self, sources: str | Path | Iterable[str | Path] = (), *, batch_size: int = 32) -> Updated:
        """Bring one source or several up to date, all that the index has if none is named; then the index shows the new
        state.

        Errors: see `impresa.search.update.update_index`.
        """
        given = [sources] if isinstance(sources, str | Path) or not isinstance(sources, Iterable) else list(sources)
        if wrong := [kind(source) for source in given if not isinstance(source, str | Path)]:
            raise DataError(f"sources: got {wrong[0]}; give the path of a folder, or a list of them")
        names = source_names(map(str, given)) or self.sources()
        config, modalities = read_run_config(self.run_dir), self.about.modalities
        done = update_index(
            self.path,
            self.run_dir,
            lambda: open_readers(config, names, modalities, known=self.sources()),
            lambda: self.model,
            modalities=modalities,
            batch_size=batch_size,
        )
        self.refresh()
        return done

    def sources(self) -> list[str]:
        """The sources that rows are from, in full."""
        return self._state.sources()

    @cpu_by_default()
    def search(
        self,
        query: Any = None,
        *,
        text: str | Sequence[str] | None = (),
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
                a `Query` or a vector (E,), which may be a list of numbers.
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
        with self._model_in_use:
            vector = self._vector_of(query, beside)
        state = self._state  # one for both steps, whatever is published between them
        scores, rows = state.search_vectors(vector[None], top=top, where=where, dim=dim)
        return state.results(scores[0], rows[0])

    def _vector_of(self, query: Any, beside: Query) -> Tensor:
        """(E,) of a query and what was given beside it."""
        if _is_vector(query):
            return F.normalize(self._vectors_of("query", query)[0].cpu(), dim=0)
        if isinstance(query, Query):
            return query.vector(self.model)
        return (beside if query is None else query_of(query).joined(beside)).vector(self.model)

    @cpu_by_default()
    def search_vectors(
        self, queries: Vectors, *, top: int = 20, where: str | None = None, dim: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """See `Snapshot.search_vectors`; an array or a list of vectors is taken as well."""
        return self._state.search_vectors(self._vectors_of("queries", queries), top=top, where=where, dim=dim)

    def _vectors_of(self, argument: str, vectors: Vectors) -> Tensor:
        """(Q, E) of vectors that a user gives as `argument`."""
        width = self.about.width
        fault = f"{argument}: is no vector of {width} finite numbers; give one of this model"
        try:
            rows = vectors_of(argument, vectors)
        except DataError as error:
            raise DataError(fault) from error
        if rows.shape[1] != width:
            raise DataError(fault)
        return rows

    def vectors(self) -> Tensor:
        """(N, E) float32, of length one, in the order of the rows; loaded once."""
        return self._state.vectors()

    def prefixes(self, dim: int) -> Tensor:
        """(N, dim): the first numbers of all vectors, see `Snapshot.prefixes`."""
        return self._state.prefixes(dim)

    def captions(self) -> list[str]:
        """All different captions, a caption of several lines as several."""
        return self._state.captions()

    def keep(self, funnel: Funnel | None) -> None:
        """Search by this from now on; None is the exact search."""
        self._state.write_about(replace(self.about, funnel=funnel, exact=funnel is None))


def _is_vector(query: Any) -> bool:
    if isinstance(query, Tensor | np.ndarray):
        return query.ndim == 1
    return isinstance(query, list) and len(query) > 1 and all(map(is_number, query))
