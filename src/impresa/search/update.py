"""Bringing an index up to date with its sources: what is new or has changed is embedded, what is gone goes."""

from __future__ import annotations

import gc
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import torch
from rich.progress import Progress
from torch import Tensor
from torch.nn import functional as F

from impresa.config.encoder import Modality
from impresa.config.paths import expanded
from impresa.data.sources import BadSample
from impresa.data.text import as_unicode
from impresa.errors import DataError
from impresa.evaluation.results import BadSampleNote
from impresa.run_dir.lock import locked
from impresa.search.about import About, about_run, check_golden_vectors, check_run, golden_vectors, read_about
from impresa.search.reading import Item, Reader, cell_for, check_types, thumbnail_of
from impresa.search.store import PREFIX, VECTOR, Store, exists, is_address, is_free, schema_of, vector_column
from impresa.tasks.samples import Embedder, nothing_usable, progress_bar

if TYPE_CHECKING:
    from impresa.tasks.alignment.embedder import EmbeddingModel

Known = dict[str, tuple[set[str], list[str]]]
"""Stamps and keys of the rows of a source, by the name of the sample."""
INDEX_ABOVE = 5_000_000
"""Rows from which on LanceDB's own index makes the shortlist: up to there one pass over the prefixes is quick enough,
and finds what no index can miss."""
COMMIT_ROWS, COMMIT_S = 4096, 30.0
"""An update that is killed has lost no more rows and no more seconds than these."""
_BUSY = "is being updated{}; wait for it, or choose another --out"
_TEXTS = ("key", "source", "id", "modality", "path", "caption", "label", "hash", "stamp")


@dataclass
class Updated:
    """What an update has done; rows are images, sounds and texts."""

    num_rows: int = 0
    """In the index now."""
    num_samples: int = 0
    """That the sources have, bad ones included."""
    unchanged: int = 0
    """Samples that were not read."""
    embedded: int = 0
    """Rows."""
    reused: int = 0
    """Rows whose content was known already, from the same or from another place."""
    removed: int = 0
    """Rows that are gone."""
    bad: list[BadSampleNote] = field(default_factory=list)

    def summary(self) -> str:
        """All counts but of what did not happen, in words."""
        parts = {
            "embedded": self.embedded,
            "known by their content": self.reused,
            "removed": self.removed,
            "samples unchanged": self.unchanged,
        }
        return f"{self.num_rows:,} rows: " + ", ".join(f"{count:,} {name}" for name, count in parts.items() if count)

    def left_out(self, most: int = 10) -> Iterator[str]:
        """Lines on the samples that could not be used: how many for each reason, with the first of them."""
        if not self.bad:
            return
        yield f"{len(self.bad):,} of {self.num_samples:,} samples could not be used and were skipped:"
        first = {note.reason: note.id for note in reversed(self.bad)}
        counts = Counter(note.reason for note in self.bad).most_common()
        yield from (f"  {count:,}: {reason} (as {first[reason]})" for reason, count in counts[:most])
        if len(counts) > most:
            yield f"  and {len(counts) - most:,} more reasons"


def update_index(
    index: str,
    run_dir: Path,
    open_readers: Callable[[], Sequence[Reader]],
    load_model: Callable[[], EmbeddingModel],
    *,
    modalities: tuple[Modality, ...],
    drop: Sequence[str] = (),
    batch_size: int = 32,
    show_progress: bool = False,
) -> Updated:
    """Make an index, or bring it up to date; readers see the new state at the end, all at once.

    Args:
        index: where it is.
        run_dir: the run that embeds.
        open_readers: opens the sources; rows of other sources stay as they are.
        load_model: loads the run, if there is anything to embed.
        modalities: which parts of a sample become rows.
        drop: names of sources whose rows go.
        batch_size: inputs at a time.
        show_progress: a bar on standard error.

    Raises:
        CheckpointError: the index is of another model or preprocessing, is damaged, or is being updated.
        DataError: no sample is usable, or nothing would be left.
    """
    with _alone(index):
        about = about_run(run_dir, modalities)
        if exists(index):
            old = read_about(index, Store.latest(index).read_about())
            check_run(index, old, run_dir)
            about = replace(old, run=about.run, modalities=modalities)
        with progress_bar(show_progress) as bar:
            update = _Update(index, about, load_model, batch_size, bar)
            with _uncollected():
                readers = open_readers()
            update.drop(drop, brings_others=bool(readers))
            for reader in readers:
                update.bring_in(reader)
            return update.publish()


@contextmanager
def _alone(index: str) -> Iterator[None]:
    """Keep other updates away; in object storage nobody can."""
    if is_address(index):
        yield
        return
    folder = expanded(index)
    if not is_free(index):
        what = "is a file" if folder.is_file() else "is a folder of something else"
        raise DataError(f"{index}: {what}; name a new folder with --out")
    if not folder.parent.is_dir():
        raise DataError(f"{folder.parent}: is no folder; make it, or name another with --out")
    try:
        with locked(folder, _BUSY):
            yield
    finally:
        with suppress(OSError):
            folder.rmdir()  # where nothing was written


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without Python's collector of cycles: it would go through hundreds of thousands of names and stamps again and
    again, a third of the time, and find none."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


class _Update:
    """The state of one update."""

    def __init__(
        self, index: str, about: About, load_model: Callable[[], EmbeddingModel], batch_size: int, bar: Progress
    ) -> None:
        self._index, self._about, self._batch_size, self._bar = index, about, batch_size, bar
        self._load_model = load_model
        self._store = Store.latest(index) if exists(index) else None
        self._before = Store.latest(index) if exists(index) else None
        if self._before is not None:
            self._before.stay()
        self._fields: list[pa.Field] = []
        self._done = Updated()
        self._is_changed = False
        self._begin_batch()

    def drop(self, sources: Sequence[str], *, brings_others: bool) -> None:
        """Remove all rows of some sources."""
        there = set() if self._store is None else set(self._store.sources())
        if missing := [name for name in sources if name not in there]:
            raise DataError(f"--drop: {missing[0]} is no source of {self._index}; leave it out")
        if sources and there <= set(sources) and not brings_others:
            raise DataError(f"--drop: nothing would be left of {self._index}; name a source that stays, or delete it")
        self._remove([key for name in sources for _, keys in self._known(name).values() for key in keys])

    def bring_in(self, reader: Reader) -> None:
        """Embed what is new in a source, and remove what it has no more."""
        self._fields = reader.fields if self._store is None else check_types(reader, self._store.schema)
        if self._store is not None:
            self._store.add_columns(self._fields)
        with _uncollected():
            known, todo = self._changes(reader)
        for position, id, stamp in self._bar.track(todo, description="embedding"):
            self._old += known[id][1] if id in known else ()
            try:
                items = reader.items(position, stamp)
            except BadSample as fault:
                self._done.bad.append(BadSampleNote(fault.id, fault.reason))
                continue
            for item in items:
                self._take(item)
            if len(self._items) >= COMMIT_ROWS or time.monotonic() - self._began > COMMIT_S:
                self._commit()
        self._commit()

    def _changes(self, reader: Reader) -> tuple[Known, list[tuple[int, str, str]]]:
        """The known rows of a source, and position, name and stamp of each sample that is new or another one; rows of
        samples that are gone are removed."""
        known = self._known(reader.name)
        todo, seen = [], set()
        for position in self._bar.track(range(len(reader)), description="looking for changes"):
            try:
                id, stamp = reader.origin(position)
            except BadSample as fault:
                id, stamp = as_unicode(fault.id), ""
            seen.add(id)
            if id in known and known[id][0] == {stamp}:
                self._done.unchanged += 1
            else:
                todo.append((position, id, stamp))
        self._done.num_samples += len(reader)
        self._remove([key for id, (_, keys) in known.items() if id not in seen for key in keys])
        return known, todo

    def publish(self) -> Updated:
        """Let readers see what was done. Raises DataError where the index would be empty."""
        store, done = self._store, self._done
        if store is None:
            raise nothing_usable("the sources", done.bad, "impresa data check SOURCE")
        if self._is_changed or store.published_version() != store.version:
            if not len(store):
                raise nothing_usable("the sources", done.bad, "impresa data check SOURCE")
            column = VECTOR if self._about.prefix_dim is None else PREFIX
            store.publish(column if len(store) >= INDEX_ABOVE else None)
        store.write_about(self._about.to_json())
        done.num_rows = len(store)
        return done

    @cached_property
    def _model(self) -> EmbeddingModel:
        model = self._load_model()
        if self._about.golden:
            check_golden_vectors(self._index, self._about, model)
        else:
            self._about = replace(self._about, golden=golden_vectors(model))
        return model

    @cached_property
    def _by_content(self) -> dict[tuple[str, str], int]:
        """Row of the state before this update, by modality and hash."""
        if self._before is None:
            return {}
        with _uncollected():
            rows = self._before.columns(["modality", "hash"])
            columns = (rows[name].to_pylist() for name in ("modality", "hash", "_rowid"))
            return {(modality, hash): row for modality, hash, row in zip(*columns, strict=True)}

    def _known(self, source: str) -> Known:
        known: Known = {}
        if self._store is None:
            return known
        quoted = source.replace("'", "''")
        rows = self._store.columns(["id", "stamp", "key"], where=f"source = '{quoted}'")
        for id, stamp, key in zip(*(rows[name].to_pylist() for name in ("id", "stamp", "key")), strict=True):
            stamps, keys = known.setdefault(id, (set(), []))
            stamps.add(stamp)
            keys.append(key)
        return known

    def _remove(self, keys: Sequence[str]) -> None:
        if keys:
            assert self._store is not None
            self._store.delete(keys)
            self._done.removed += len(keys)
            self._is_changed = True

    def _begin_batch(self) -> None:
        self._began = time.monotonic()
        self._old: list[str] = []
        self._items: list[Item] = []
        self._thumbnails: list[bytes | None] = []
        self._reused: dict[int, int] = {}
        self._embedders: dict[Modality, Embedder[Any]] = {}

    def _take(self, item: Item) -> None:
        """Embed an item, or find its vector by its content; only its thumbnail and its words are kept."""
        row = self._by_content.get((item.modality, item.hash))
        thumbnail = None
        if row is not None:
            self._reused[len(self._items)] = row
        else:
            value = item.value
            if item.modality == "image":  # prepared one by one: a batch of photographs might not fit into memory
                thumbnail, value = thumbnail_of(value), self._model.preprocessing.image(value)
            self._embedder(item.modality).add(value)
        self._items.append(replace(item, value=None))
        self._thumbnails.append(thumbnail)

    def _embedder(self, modality: Modality) -> Embedder[Any]:
        if modality not in self._embedders:
            model, size = self._model, self._batch_size
            encoders: dict[Modality, Any] = {
                "image": model.encode_image,
                "text": model.encode_text,
                "audio": model.encode_audio,
            }
            encode = encoders[modality]
            self._embedders[modality] = Embedder[Any](lambda values: encode(values, batch_size=size), size)
        return self._embedders[modality]

    def _commit(self) -> None:
        """Put what was embedded since the last time in the place of the old rows of the same samples."""
        if self._items:
            rows = self._rows(self._vectors())
            if self._store is None:
                self._store = Store.create(self._index, self._about.to_json(), rows.schema)
            self._store.delete(self._old)
            self._store.add(rows)
            self._is_changed = True
            self._done.reused += len(self._reused)
            self._done.embedded += len(self._items) - len(self._reused)
        else:
            self._remove(self._old)
        self._begin_batch()

    def _vectors(self) -> Tensor:
        """(N, E) of the items, and the thumbnails of those that were known."""
        vectors = torch.empty(len(self._items), self._about.width, dtype=torch.float32)
        for modality, embedder in self._embedders.items():
            places = [
                number
                for number, item in enumerate(self._items)
                if item.modality == modality and number not in self._reused
            ]
            vectors[places] = embedder.embeddings()
        if self._reused:
            assert self._before is not None
            rows = list(self._reused.values())
            vectors[list(self._reused)] = self._before.vectors_of(rows)
            kept = self._before.take(rows, ["thumbnail"])["thumbnail"].to_pylist()
            for number, thumbnail in zip(self._reused, kept, strict=True):
                self._thumbnails[number] = thumbnail
        if not vectors.isfinite().all():
            raise DataError("embeddings are NaN or infinite; the training diverged, train the run again")
        return vectors

    def _rows(self, vectors: Tensor) -> pa.Table:
        about = self._about
        schema = schema_of(about.width, about.prefix_dim, self._fields) if self._store is None else self._store.schema
        words = {name: [getattr(item, name) for item in self._items] for name in _TEXTS}
        columns: dict[str, Any] = {
            name: pa.array([text and as_unicode(text) for text in texts], pa.string()) for name, texts in words.items()
        }
        columns |= {"thumbnail": pa.array(self._thumbnails, pa.binary()), VECTOR: vector_column(vectors)}
        if about.prefix_dim is not None:
            columns[PREFIX] = vector_column(F.normalize(vectors[:, : about.prefix_dim], dim=-1))
        for column in schema:
            if column.name not in columns:
                cells = (item.others.get(column.name) for item in self._items)
                columns[column.name] = pa.array([cell_for(cell, column.type) for cell in cells], column.type)
        return pa.table({name: columns[name] for name in schema.names}, schema=schema)
