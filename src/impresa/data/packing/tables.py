"""Rows as parquet files of bounded size, whose columns have one type in all of them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from impresa.config.dataset import DatasetConfig
from impresa.data.packing.rows import PackRow
from impresa.data.sources.dialogues import COMPLETION
from impresa.files import naming

_ROWS_PER_GROUP = 256
_BYTES_PER_GROUP = 32 << 20
_OVERHEAD = 1.05
"""Room for what parquet writes beside the values."""
_ARROW_FAULTS = (pa.ArrowException, ValueError, TypeError, OverflowError)


class ColumnTypes:
    """The type of each column, found by looking at all rows; columns of several types are text."""

    def __init__(self, config: DatasetConfig) -> None:
        self._config = config
        self._types: dict[str, pa.DataType | None] = {}
        self._rows: list[dict[str, Any]] = []
        self._has_several = False

    def look_at(self, row: PackRow) -> None:
        self._has_several |= len(row.images) > 1
        self._rows.append(_readable(row.columns))
        if len(self._rows) == _ROWS_PER_GROUP:
            self._settle()

    @property
    def repeating(self) -> list[str]:
        """Columns whose values may come again; no image or sound does."""
        return list(self._types)

    def schema(self) -> pa.Schema:
        self._settle()
        image = pa.list_(pa.binary()) if self._has_several else pa.binary()
        files = {self._config.image_column: image, self._config.audio_column: pa.binary()}
        fields = {name: kind or pa.string() for name, kind in self._types.items()}
        return pa.schema({**files, **fields})

    def table(self, rows: list[PackRow], schema: pa.Schema) -> pa.Table:
        columns: dict[str, list[Any]] = {
            self._config.image_column: [
                row.images if self._has_several else next(iter(row.images), None) for row in rows
            ],
            self._config.audio_column: [row.sound for row in rows],
        }
        readable = [_readable(row.columns) for row in rows]
        for name, kind in self._types.items():
            values = [row.get(name) for row in readable]
            columns[name] = values if kind is not None else [self._text(name, value) for value in values]
        return pa.table({name: pa.array(values, schema.field(name).type) for name, values in columns.items()}, schema)

    def _settle(self) -> None:
        names = dict.fromkeys((*self._types, *(name for row in self._rows for name in row)))
        for name in names:
            if name in self._types and self._types[name] is None:
                continue
            values = [row.get(name) for row in self._rows]
            self._types[name] = _common(self._types.get(name, pa.null()), values)
        self._rows = []

    def _text(self, name: str, value: Any) -> str | None:
        """A value of a column of several types, as the text that is read as the same."""
        if value is None or isinstance(value, str):
            return value
        if name in (self._config.answer_column, COMPLETION):
            if isinstance(value, bool):
                return "yes" if value else "no"
            if isinstance(value, float) and value.is_integer():
                return str(int(value))
        return str(value) if name == self._config.label_column else json.dumps(value, default=str)


class TablePacker:
    """Writes rows into the parquet files of a folder."""

    def __init__(self, folder: Path, max_bytes: int, types: ColumnTypes) -> None:
        self._folder, self._max_bytes, self._types = folder, max_bytes, types
        self._schema = types.schema()
        self._rows: list[PackRow] = []
        self._held = self._written = 0
        self._writer: pq.ParquetWriter | None = None
        self._finished: list[str] = []

    def add(self, row: PackRow) -> None:
        size = _size(row)
        if self._held and _OVERHEAD * (self._written + self._held + size) > self._max_bytes:
            self._flush()
            self._finish()
        self._rows.append(row)
        self._held += size
        if len(self._rows) == _ROWS_PER_GROUP or self._held > _BYTES_PER_GROUP:
            self._flush()

    def close(self) -> list[str]:
        """Finish, and give the names of the files."""
        self._flush()
        self._finish()
        return self._finished

    def abandon(self) -> None:
        if self._writer is not None:
            self._writer.close()

    @property
    def _name(self) -> str:
        return f"{len(self._finished):05d}.parquet"

    @property
    def _part(self) -> Path:
        return self._folder / f".{self._name}.part"

    def _flush(self) -> None:
        if not self._rows:
            return
        with naming(self._folder / self._name):
            if self._writer is None:
                self._writer = pq.ParquetWriter(self._part, self._schema, use_dictionary=self._types.repeating)
            self._writer.write_table(self._types.table(self._rows, self._schema))
        self._written += self._held
        self._rows, self._held = [], 0

    def _finish(self) -> None:
        if self._writer is None:
            return
        path = self._folder / self._name
        with naming(path):
            self._writer.close()
            os.replace(self._part, path)
        self._finished.append(self._name)
        self._writer, self._written = None, 0


def _common(known: pa.DataType, values: list[Any]) -> pa.DataType | None:
    """The type of values and of those before; None if there is none that holds them all as they are."""
    try:
        found = pa.array(values).type
        kind = pa.unify_schemas(
            [pa.schema({"it": known}), pa.schema({"it": found})], promote_options="permissive"
        ).field(0)
    except _ARROW_FAULTS:
        return None
    return None if "struct<>" in str(kind.type) else kind.type  # which parquet cannot hold


def _readable(columns: Any) -> dict[str, Any]:
    return {name: _replaced(value) for name, value in columns.items()}


def _replaced(value: Any) -> Any:
    """Text that is no Unicode has signs of replacement; it stands in columns that nothing here reads."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    return [_replaced(item) for item in value] if isinstance(value, list | tuple) else value


def _size(row: PackRow) -> int:
    texts = sum(len(value) if isinstance(value, str | bytes) else len(str(value)) for value in row.columns.values())
    return sum(map(len, row.images)) + len(row.sound or b"") + texts
