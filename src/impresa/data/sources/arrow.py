"""Columns of arrow's types, as parquet and the `datasets` library have them: those that are read, and their values."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import pyarrow as pa

from impresa.data.sources.dialogues import COMPLETION, MESSAGES, PROMPT
from impresa.data.sources.rows import IMAGE_NAMES, RowSource
from impresa.errors import DataError
from impresa.foreign_text import printable

MOST_ITEMS = 10_000
"""Of a list in one cell."""
UNREADABLE = (OSError, ValueError, RecursionError, MemoryError, pa.ArrowException)
"""Errors of reading a damaged file."""
_CONTENTS = {
    **dict.fromkeys(("binary", "large_binary", "binary_view"), "bytes"),
    **dict.fromkeys(("string", "large_string", "string_view"), "text"),
    "null": "null",
}
"""The content of a column of each arrow type."""
_NUMBERS = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_boolean)
_LISTS = (pa.ListType, pa.LargeListType, pa.FixedSizeListType)
_FILE = {"bytes", "text", "struct"}
_FILES = {*_FILE, *(f"list of {kind}" for kind in _FILE)}
_TEXT = {"text", "list of text", "bytes", "list of bytes"}
_CAPTIONS = _TEXT | {"list of list of text", "null", "list of null"}
_SAID = {"list of struct", "list of text", "null"}
_ANSWER = _TEXT | {"number", "list of number", "list of struct", "null", "list of null"}
_ANSWERS = _ANSWER | {f"list of {kind}" for kind in _ANSWER}


class ArrowSource(RowSource):
    """Samples of rows with arrow's types."""

    @property
    @abstractmethod
    def _names(self) -> Sequence[str]:
        """The columns that are read of any file, in order; some twice."""

    def other_columns(self) -> tuple[str, ...]:
        return tuple(name for name in dict.fromkeys(self._names) if name not in (*self.columns, *IMAGE_NAMES))

    def names_in(self, schema: pa.Schema, file: Path | str) -> tuple[str, ...]:
        """The columns that are read of a file.

        Raises:
            DataError: it lacks one, or has one of a wrong type.
        """
        found = set(schema.names)
        if fault := self.missing(found) or self._wrong_type(schema):
            raise DataError(f"{file}: {fault}")
        wanted = dict.fromkeys(schema.names if self._reading.whole else (self.image_column_in(found), *self.columns))
        names = tuple(name for name in wanted if name is not None and name in found)
        if twice := next((name for name in names if schema.names.count(name) > 1), None):
            raise DataError(f"{file}: has the column {printable(twice)!r} twice; write the file anew")
        if self._reading.others and not self._reading.whole:
            names = tuple(dict.fromkeys((*names, *_plain_columns(schema))))
        return names

    def held_among(self, found: Set[str]) -> set[str]:
        """The columns of images and sounds that are read, of those that a file has."""
        sounds = {self._config.audio_column} if self._reading.sounds else set()
        return {name for name in (self.image_column_in(found), *sounds) if name in found and name is not None}

    def _wrong_type(self, schema: pa.Schema) -> str | None:
        """The first column of a wrong type, with the right ones; None if all are right."""
        config, reading = self._config, self._reading
        if reading.whole:
            return None
        image = self.image_column_in(set(schema.names)) or config.image_column
        checks = [(image, _FILES, "bytes or paths of images")]
        if config.caption_column != config.label_column:
            checks.append((config.caption_column, _CAPTIONS, "text or lists of text"))
        if reading.negatives and config.negative_column:
            checks.append((config.negative_column, _CAPTIONS, "text or lists of text"))
        if reading.sounds:
            checks.append((config.audio_column, _FILE, "bytes or paths of sounds"))
        if reading.dialogues:
            checks.append((config.question_column, {*_TEXT, "null"}, "text or lists of text"))
            checks.append((config.answer_column, _ANSWERS, "text, numbers or lists of them"))
            checks += [(name, _SAID, "lists of what was said") for name in MESSAGES]
            checks.append((PROMPT, {*_TEXT, *_SAID}, "text or lists of messages"))
            checks.append((COMPLETION, _ANSWERS, "text, numbers or lists of messages"))
        for name, allowed, what in checks:
            if name in schema.names and _content(kind := schema.field(name).type) not in allowed:
                return f"column {name!r} is {kind}; it must hold {what}"
        return None


class _Damage(str):
    """Reason why a cell has no value."""

    __slots__ = ()


def values_of(cells: Mapping[str, pa.Scalar]) -> tuple[dict[str, Any], str | None]:
    """The values of a row's cells that have one, and a reason why one has none; None if all have."""
    values = {name: _value(cell) for name, cell in cells.items()}
    faults = [f"column {name!r} {value}" for name, value in values.items() if isinstance(value, _Damage)]
    return {name: value for name, value in values.items() if not isinstance(value, _Damage)}, next(iter(faults), None)


def rows_of(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    """The values of each row, without those of damaged cells."""
    for cells in zip(*batch.columns, strict=True):
        yield values_of(dict(zip(batch.schema.names, cells, strict=True)))[0]


def _value(cell: pa.Scalar) -> Any:
    if isinstance(cell, pa.ListScalar | pa.LargeListScalar) and len(cell.values or ()) > MOST_ITEMS:
        return _Damage(f"is a list of {len(cell.values)} items, more than {MOST_ITEMS}")
    try:
        return cell.as_py()
    except UnicodeDecodeError:
        return _Damage("is not UTF-8 text")
    except UNREADABLE as error:
        return _Damage(f"cannot be read ({error})")


def _plain_columns(schema: pa.Schema) -> Iterator[str]:
    """Names of the columns of single texts, numbers, or true and false."""
    for column in schema:
        kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
        is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
        if is_number or _content(kind) == "text":
            yield column.name


def _content(kind: pa.DataType) -> str:
    """The content of a column of any encoding."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if isinstance(kind, _LISTS):
        return f"list of {_content(kind.value_type)}"
    if any(is_kind(kind) for is_kind in _NUMBERS):
        return "number"
    return _CONTENTS.get(str(kind), "struct" if pa.types.is_struct(kind) else "other")
