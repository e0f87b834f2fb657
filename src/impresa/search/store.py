"""An index's rows in LanceDB, in a folder or in object storage.

There are two tables: `items`, a row for each vector, and `about`, one row with the description as JSON. An update adds
and deletes rows batch by batch, each of which is a new version of `items` that nobody reads: readers take the version
with the tag `published`, which moves at the end. So an update that is killed leaves the old state, and the next one
finds what it had done.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from impresa.config.paths import expanded, looked_in
from impresa.errors import CheckpointError, ConfigError
from impresa.hub import import_optional
from impresa.run_dir.layout import CONFIG, LOCK
from impresa.tasks.arguments import kind

P = ParamSpec("P")
T = TypeVar("T")

ITEMS, ABOUT, PUBLISHED = "items", "about", "published"
VECTOR, PREFIX = "vector", "prefix"
OWN_COLUMNS = (
    "key",
    "source",
    "id",
    "modality",
    "path",
    "caption",
    "label",
    "hash",
    "stamp",
    "thumbnail",
    VECTOR,
    PREFIX,
)
"""Columns of every index (`prefix` only with Matryoshka); those of the data come beside them."""
_FOLDERS = (f"{ITEMS}.lance", f"{ABOUT}.lance")
_KEPT_FOR = timedelta(hours=1)
"""For so long a version that was published stays, for those who are reading it."""
_FOR_EVER = timedelta(days=36_500)
_PLACE_IN_SOURCE = re.compile(r",? ?/[^ ]*\.rs:\d+(:\d+)?")
"""What Rust's libraries put into their messages."""
_QUOTED = re.compile(r"""'(?:[^']|'')*'|"([^"]*)"|`([^`]*)`""")
"""A text, or the name of a column, in a condition."""
_NOT_READ = re.compile(r"[?;$@]|--|/\*|(?<!:):(?!:)|\w''")
"""In a condition whose texts are empty: what LanceDB leaves out silently, or cannot read without a crash. These are
comments, a second statement, places for values, and texts of other kinds, such as N'cat'."""
_TOLD = tuple(map(re.compile, (r"<Message>(.+?)</Message>", r'message: "(.+?)"', r"(status: \d+)")))
"""The words of the storage, or of the system, in what the library says of a place that it cannot reach."""
_HIDDEN = ("key", "hash", "stamp", "thumbnail", VECTOR, PREFIX)
"""Columns that no condition is for."""
_MOST_COLUMNS_NAMED = 20


def is_address(index: str) -> bool:
    """True for a place in object storage, such as `s3://bucket/index`."""
    return "://" in index


def exists(index: str) -> bool:
    """True if an index, finished or not, is at a place."""
    if not is_address(index):
        return all((expanded(index) / name).is_dir() for name in _FOLDERS)
    database = _connect(index)
    with _reaching(index):
        return {ITEMS, ABOUT} <= set(database.list_tables().tables)


def _what_it_is(index: str) -> str:
    """The fault where no index lies: what is there in its place, and a command that writes over none of it."""
    fix = f"is no index; make it with `impresa index RUN SOURCE --out {index}`"
    if is_address(index):
        return fix
    if (expanded(index) / CONFIG).is_file():
        return f"is a run, and no index; make one with `impresa index {index} SOURCE`, and give what it prints last"
    if not is_free(index):
        return "is no index, and something else; give what `impresa index` printed last"
    return f"{fix}{looked_in(index)}"


def is_free(index: str) -> bool:
    """True for a folder in which nothing but an index lies, or nothing yet."""
    folder = expanded(index)
    return not os.path.lexists(folder) or (folder.is_dir() and {*os.listdir(folder)} <= {*_FOLDERS, LOCK})


def schema_of(width: int, prefix_dim: int | None, others: Sequence[pa.Field] = ()) -> pa.Schema:
    """The columns of `items`."""
    columns = [pa.field(name, pa.string()) for name in OWN_COLUMNS[:9]] + [pa.field("thumbnail", pa.binary())]
    columns.append(pa.field(VECTOR, pa.list_(pa.float32(), width)))
    if prefix_dim is not None:
        columns.append(pa.field(PREFIX, pa.list_(pa.float32(), prefix_dim)))
    return pa.schema([*columns, *others])


def _reading(method: Callable[Concatenate[Store, P], T]) -> Callable[Concatenate[Store, P], T]:
    """A method that reads: what LanceDB raises there is a `CheckpointError`, for a file is gone or damaged."""

    @wraps(method)
    def read(self: Store, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return method(self, *args, **kwargs)
        except (ValueError, OSError, RuntimeError) as error:
            raise _damaged(self.index, error) from error

    return read


class Store:
    """The tables of an index. Made by `create`, `published` or `latest`; what reads raises `CheckpointError` where the
    index is damaged."""

    def __init__(self, index: str, database: Any, items: Any) -> None:
        self.index = index
        self._database = database
        self._items = items

    @classmethod
    def create(cls, index: str, about: str, schema: pa.Schema) -> Store:
        """A new index without rows, which is not published yet; one that was begun and never published is replaced."""
        database = _connect(index)
        store = cls(index, database, database.create_table(ITEMS, schema=schema, mode="overwrite"))
        store.write_about(about)
        return store

    @classmethod
    def latest(cls, index: str) -> Store:
        """An index as the last update left it, finished or not. Errors are those of `published`."""
        if not exists(index):
            raise CheckpointError(f"{index}: {_what_it_is(index)}")
        database = _connect(index)
        try:
            return cls(index, database, database.open_table(ITEMS))
        except (ValueError, OSError, RuntimeError) as error:
            raise _damaged(index, error) from error

    @classmethod
    def published(cls, index: str) -> Store:
        """The state that readers see, which no update changes.

        Raises:
            CheckpointError: there is no index, it is damaged, or the first update has not come to its end.
        """
        store = cls.latest(index)
        if store.published_version() is None:
            raise CheckpointError(f"{index}: is unfinished; `impresa index RUN SOURCE --out {index}` finishes it")
        store.checkout()
        return store

    @_reading
    def checkout(self) -> None:
        """Go to the state that is published now."""
        self._items.checkout(PUBLISHED)

    def stay(self) -> None:
        """Stay at the state that this was opened at, whatever is added and deleted later."""
        self._items.checkout(self.version)

    @property
    def version(self) -> int:
        return int(self._items.version)

    @property
    def schema(self) -> pa.Schema:
        return self._items.schema

    @_reading
    def __len__(self) -> int:
        return int(self._items.count_rows())

    @_reading
    def published_version(self) -> int | None:
        """The version that readers see; None before the first update has come to its end."""
        found = self._items.tags.list().get(PUBLISHED)
        return None if found is None else int(found["version"])

    def read_about(self) -> str:
        try:
            return str(self._database.open_table(ABOUT).head(1)["json"][0].as_py())
        except (ValueError, OSError, RuntimeError, LookupError) as error:
            raise _damaged(self.index, error) from error

    def write_about(self, about: str) -> None:
        self._database.create_table(ABOUT, pa.table({"json": [about]}), mode="overwrite")

    def add(self, rows: pa.Table) -> None:
        """Add rows, which no reader sees before `publish`."""
        if rows.num_rows:
            self._items.add(rows)

    def delete(self, keys: Sequence[str]) -> None:
        """Delete rows, which readers still see before `publish`."""
        for start in range(0, len(keys), 1000):
            self._items.delete(f"key IN ({', '.join(map(_quoted, keys[start : start + 1000]))})")

    def add_columns(self, columns: Sequence[pa.Field]) -> None:
        """Columns that hold nothing yet."""
        if columns:
            self._items.add_columns(list(columns))

    def publish(self, index_column: str | None = None) -> None:
        """Let readers see the rows as they are now. Many small batches become few files, and old versions go.

        Args:
            index_column: the column of vectors for which LanceDB makes an index.
        """
        self._tag()
        self._items.optimize(cleanup_older_than=_FOR_EVER)
        if index_column is not None and self.indexed_column() is None:  # else `optimize` has brought it up to date
            self._make_index(index_column)
        self._tag()
        self._items.optimize(cleanup_older_than=_KEPT_FOR)  # not before the newest version is the tagged one

    def _tag(self) -> None:
        tags = self._items.tags
        if self.published_version() is None:
            tags.create(PUBLISHED, self.version)
        elif self.published_version() != self.version:
            tags.update(PUBLISHED, self.version)

    def _make_index(self, column: str) -> None:
        from lancedb.index import IvfFlat

        self._items.create_index(column, config=IvfFlat(distance_type="cosine"), replace=True)

    @_reading
    def indexed_column(self) -> str | None:
        """The column of vectors for which LanceDB has an index."""
        return next((str(index.columns[0]) for index in self._items.list_indices()), None)

    @_reading
    def neighbours(self, column: str, query: Tensor, number: int, where: str | None) -> NDArray[np.uint64]:
        """(S,) row ids of the nearest rows by LanceDB's index, about the nearest `number` of those that fulfil a
        condition."""
        search = self._items.search(query.numpy(), vector_column_name=column).distance_type("cosine")
        search = search if where is None else search.where(_checked(where), prefilter=True)
        found = search.nprobes(_NPROBES).select(["key", "_distance"]).with_row_id(True).limit(number)
        return self._answer(found, where)["_rowid"].to_numpy()

    @_reading
    def row_ids(self, where: str | None = None) -> NDArray[np.uint64]:
        """(N,) ids of all rows, or of those that fulfil a condition, ascending.

        Raises:
            ConfigError: the condition is none.
        """
        search = self._items.search()
        search = search if where is None else search.where(_checked(where))
        return np.sort(self._answer(search.select(["modality"]).with_row_id(True), where)["_rowid"].to_numpy())

    def row_of_key(self, key: str, names: Sequence[str]) -> dict[str, Any] | None:
        """Columns of the row with a key; None if there is none."""
        found = self.take(self.row_ids_of_key(key), names).to_pylist()
        return found[0] if found else None

    @_reading
    def row_ids_of_key(self, key: str) -> list[int]:
        """The id of the row with a key, or none."""
        found = self._items.search().where(f"key = {_quoted(key)}").select(["key"]).with_row_id(True).to_arrow()
        return [int(id) for id in found["_rowid"].to_pylist()]

    def _answer(self, search: Any, where: str | None) -> pa.Table:
        try:
            return search.to_arrow()
        except Exception as error:  # a crash of LanceDB's own is one of no known type
            if where is None or _FOLDERS[0] in str(error):  # a file, whose place is for nobody to see
                raise
            raise ConfigError(self._fault_of_where(error)) from error

    def _fault_of_where(self, error: Exception) -> str:
        reason = _PLACE_IN_SOURCE.sub("", " ".join(str(error).split()))
        reason = re.sub(r"^(lance error: )?(Invalid input, )*", "", reason)
        reason = re.split(r" ?Valid fields are", reason)[0].rstrip(". ")
        names = self.named_columns()
        shown = ", ".join(names[:_MOST_COLUMNS_NAMED]) + (", ..." if len(names) > _MOST_COLUMNS_NAMED else "")
        return f"where: {reason:.300}; write a condition such as label = 'cat' with the columns {shown}"

    def named_columns(self) -> list[str]:
        """The columns that a condition may name."""
        return [name for name in self.schema.names if name not in _HIDDEN]

    @_reading
    def columns(self, names: Sequence[str], where: str | None = None) -> pa.Table:
        """Columns of all rows, and `_rowid`."""
        search = self._items.search()
        search = search.where(where) if where else search
        return search.select(list(names)).with_row_id(True).to_arrow()

    def sources(self) -> list[str]:
        """The sources that rows are from, in full."""
        return sorted(set(self.columns(["source"])["source"].to_pylist()))

    @_reading
    def matrix(self, column: str) -> tuple[NDArray[np.uint64], Tensor]:
        """Row ids (N,), ascending, and the vectors (N, W) of a column, contiguous; read batch by batch into one array,
        so that it is held once."""
        number, width = len(self), self.schema.field(column).type.list_size
        ids, vectors = np.empty(number, np.uint64), np.empty((number, width), np.float32)
        start = 0
        for batch in self._items.search().select([column]).with_row_id(True).to_batches():
            end = start + batch.num_rows
            ids[start:end] = batch["_rowid"].to_numpy()
            vectors[start:end] = batch[column].flatten().to_numpy(zero_copy_only=False).reshape(-1, width)
            start = end
        if (ids[1:] < ids[:-1]).any():
            order = np.argsort(ids)
            ids, vectors = ids[order], vectors[order]
        return ids, torch.from_numpy(vectors)

    @_reading
    def take(self, row_ids: Sequence[int], names: Sequence[str]) -> pa.Table:
        """Columns of some rows, in their order."""
        distinct = list(dict.fromkeys(row_ids))
        if not distinct:
            return pa.table({name: pa.array([], self.schema.field(name).type) for name in names})
        found = self._items.take_row_ids(distinct).select(list(names)).with_row_id().to_arrow()
        place = {id: number for number, id in enumerate(found["_rowid"].to_pylist())}
        return found.drop_columns("_rowid").take([place[id] for id in row_ids])

    @_reading
    def vectors_of(self, row_ids: Sequence[int]) -> Tensor:
        """(N, E) of some rows."""
        found = self.take(row_ids, [VECTOR])[VECTOR].combine_chunks()
        return torch.from_numpy(found.flatten().to_numpy(zero_copy_only=False).reshape(len(row_ids), -1).copy())


def without_texts(where: str) -> str:
    """A condition whose texts are empty, and whose names have no quotes."""
    return _QUOTED.sub(lambda found: "''" if found[0][0] == "'" else f" {found[1] or found[2] or ''} ", where)


def _checked(where: str) -> str:
    """A condition that can be given to LanceDB."""
    if not isinstance(where, str):
        raise ConfigError(f"where: got {kind(where)}; give a text such as label = 'cat'")
    if not where.strip():
        raise ConfigError("where: the condition is empty; leave it out, or write one such as label = 'cat'")
    if found := _NOT_READ.search(without_texts(where)):
        sign = found[0].removesuffix("'")
        fix = "write one condition, with the values themselves, and texts as 'cat'"
        raise ConfigError(f"where: {sign} cannot be read there; {fix}")
    return where


_NPROBES = 64
"""Lists of LanceDB's index that are read for a query."""


def vector_column(vectors: Tensor) -> pa.FixedSizeListArray:
    """(N, W) as a column."""
    return pa.FixedSizeListArray.from_arrays(pa.array(vectors.contiguous().view(-1).numpy()), vectors.shape[1])


def batches_of(table: pa.Table, size: int) -> Iterator[pa.Table]:
    """A table in pieces of `size` rows."""
    return (table.slice(start, size) for start in range(0, table.num_rows, size))


def _connect(index: str) -> Any:
    os.environ.setdefault("LANCEDB_LOG", "error")  # it warns of what is meant to be, such as that a table is new
    os.environ.setdefault("LANCE_LOG", "error")
    lancedb = import_optional("INDEX", "lancedb", "'impresa[search]'", user="an index")
    if not is_address(index):
        return lancedb.connect(Path(expanded(index)))
    with _reaching(index):
        return lancedb.connect(index)


@contextmanager
def _reaching(index: str) -> Iterator[None]:
    """Say in a line what object storage refuses, of which the library prints all its inner state."""
    try:
        yield
    except (ValueError, OSError, RuntimeError) as error:
        text = " ".join(str(error).split())
        told = next(filter(None, (pattern.search(text) for pattern in _TOLD)), None)
        reason = told[1] if told else text.removeprefix("Invalid input, ").rstrip(". ")
        fix = "check the address, and the keys, region and endpoint in the environment"
        raise CheckpointError(f"{index}: cannot be reached ({reason:.200}); {fix}") from error


def _damaged(index: str, error: Exception) -> CheckpointError:
    reason = _PLACE_IN_SOURCE.sub("", " ".join(str(error).split()))
    return CheckpointError(f"{index}: is damaged ({reason:.200}); restore it, or make it anew with `impresa index`")


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
