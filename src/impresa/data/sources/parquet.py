"""Parquet files with images as bytes (or paths) and captions, read a row group at a time.

Images and sounds are columns of bytes, of paths relative to the file, or of Hugging Face's struct of `bytes` and
`path`. A row group is decoded when one of its rows is read, and the last ones are kept up to a bound in bytes. If the
data are larger than that, `blocks` makes the sampler shuffle within as many row groups as are kept. Files are opened
for each row group and mapped into memory, so that the source can be sent to worker processes.
"""

from __future__ import annotations

import logging
import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate, chain, repeat
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from impresa.config.dataset import DatasetConfig
from impresa.config.paths import expanded, matches
from impresa.data.class_names import ClassNames, names_in_schema
from impresa.data.disk import files_below, open_regular
from impresa.data.sources.base import IMAGES_AND_CAPTIONS, Blocks, Reading, locate
from impresa.data.sources.dialogues import COMPLETION, MESSAGES, PROMPT
from impresa.data.sources.rows import IMAGE_NAMES, Row, RowSource, found_of, prefixes, word_of
from impresa.errors import DataError
from impresa.foreign_text import printable

logger = logging.getLogger(__name__)

_MOST_BYTES_KEPT = 256 << 20
_MOST_BYTES_IN_GROUP = 2 << 30
"""A row group is read as a whole, in each worker: larger ones are refused."""
_LEAST_BYTES_IN_ROW = 64
"""That a row counts for, whatever the file says: rows without a value take no bytes there, but time and memory here."""
_MOST_ITEMS = 10_000
"""Of a list in one cell."""
_ROWS_PER_SCAN = 256
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
_SAID = {"list of struct", "list of text", "null"}
_ANSWER = _TEXT | {"number", "list of number", "list of struct", "null", "list of null"}
_ANSWERS = _ANSWER | {f"list of {kind}" for kind in _ANSWER}
_UNREADABLE = (OSError, ValueError, RecursionError, MemoryError, pa.ArrowException)
"""Errors of reading a damaged file."""


@dataclass(frozen=True)
class _RowGroup:
    """Row group `number` of a file."""

    file: Path
    name: str
    """Path of the file relative to the folder of all files."""
    number: int
    columns: tuple[str, ...]
    """The columns that are read."""
    num_rows: int
    num_bytes: int
    """Approximate size of these columns in memory."""
    first_row: int
    """Number of its first row in the file."""
    class_names: ClassNames
    """Names of the labels in the file's schema."""
    is_whole: bool
    """True if all images (and sounds) are bytes in the file itself."""

    def row(self, number: int, cells: dict[str, Any], fault: str | None = None) -> Row:
        return Row(f"{self.name}:{self.first_row + number}", cells, self.file.parent, fault, self.class_names)


class ParquetSource(RowSource):
    """Samples of one or more parquet files, in the order of files and rows.

    Args:
        path: a file, a folder with such files in it or below it, or a pattern like `data/part-*.parquet`; for the next
            three arguments see `RowSource`.
        max_bytes_kept: bound of the row groups kept in memory; one group of any size is always kept.

    Raises:
        DataError: a file is missing, damaged, no parquet, lacks a column or has a row group of more than 2 GiB, or the
            files have no rows.
    """

    def __init__(
        self,
        path: Path | str,
        config: DatasetConfig,
        reading: Reading = IMAGES_AND_CAPTIONS,
        shrink_to_px: int | None = None,
        *,
        max_bytes_kept: int = _MOST_BYTES_KEPT,
    ) -> None:
        files = files_of(str(path))
        root = Path(os.path.commonpath([file.parent for file in files]))
        super().__init__(root, config, reading, shrink_to_px)
        if (folder := expanded(str(path))).is_dir():
            self._allowed = prefixes(folder)  # the files may all lie in a folder below it
        self._max_bytes_kept = max_bytes_kept
        self._groups = [group for file in files for group in self._row_groups(file)]
        self._ends = list(accumulate(group.num_rows for group in self._groups))
        self._kept: OrderedDict[int, dict[str, pa.ChunkedArray]] = OrderedDict()
        self._damaged: dict[int, ValueError] = {}  # what is wrong with a row group, by number
        if not self._groups:
            raise DataError(f"{files[0]}: no rows; name parquet files that have some")
        self._largest = max(group.num_bytes for group in self._groups)
        if self._largest > max_bytes_kept:
            fault = f"{root}: a row group takes {self._largest >> 20} MiB in each worker"
            logger.warning("%s; files with smaller row groups need less memory", fault)

    def __len__(self) -> int:
        return self._ends[-1]

    def row(self, index: int) -> Row:
        number, row = locate(index, self._ends)
        group = self._groups[number]
        try:
            if number in self._damaged:
                raise self._damaged[number]
            cells = {name: column[row] for name, column in self._read(number).items()}
        except _UNREADABLE as error:
            if isinstance(error, ValueError):  # it would be the same for the next row; memory may be free again
                self._damaged[number] = error
            return group.row(row, {}, f"the row cannot be read ({getattr(error, 'strerror', None) or error})")
        values = {name: _value(cell) for name, cell in cells.items()}
        damaged = (f"column {name!r} {value}" for name, value in values.items() if isinstance(value, _Damage))
        return group.row(row, values, next(damaged, None))

    def origin(self, index: int) -> tuple[str, str]:
        number, row = locate(index, self._ends)
        group = self._groups[number]
        if not group.is_whole:
            return super().origin(index)
        name = group.row(row, {}).id
        return name, word_of(self.columns, found_of(group.file))

    def scan(self, columns: Sequence[str]) -> Iterator[Row]:
        """All rows, without keeping them, and without damaged cells; those of a damaged row group have none."""
        for group in self._groups:
            yield from (group.row(number, cells) for number, cells in enumerate(_scan_group(group, columns)))

    def other_columns(self) -> tuple[str, ...]:
        found = dict.fromkeys(chain.from_iterable(group.columns for group in self._groups))
        return tuple(name for name in found if name not in (*self.columns, *IMAGE_NAMES))

    def blocks(self) -> Blocks | None:
        if sum(group.num_bytes for group in self._groups) <= self._max_bytes_kept:
            return None
        lengths = tuple(group.num_rows for group in self._groups)
        return Blocks(lengths, num_held=max(self._max_bytes_kept // self._largest, 1))

    def _row_groups(self, file: Path) -> Iterator[_RowGroup]:
        try:
            yield from self._row_groups_in(file, _open(file))
        except DataError:
            raise
        except _UNREADABLE as error:
            raise DataError(f"{file}: no readable parquet file ({error}); name parquet files") from error

    def _row_groups_in(self, file: Path, opened: pq.ParquetFile) -> Iterator[_RowGroup]:
        found = set(opened.schema_arrow.names)
        if fault := self.missing(found) or self._wrong_type(opened.schema_arrow):
            raise DataError(f"{file}: {fault}")
        wanted = dict.fromkeys((self.image_column_in(found), *self.columns))
        names = tuple(name for name in wanted if name is not None and name in found)
        held = {*names} & {self.image_column_in(found), *([self._config.audio_column] if self._reading.sounds else ())}
        if self._reading.whole:
            names = tuple(opened.schema_arrow.names)
        elif self._reading.others:
            names = tuple(dict.fromkeys((*names, *_plain_columns(opened.schema_arrow))))
        class_names = names_in_schema(opened.schema_arrow.metadata, self._config.label_column)
        first_row = 0
        for number in range(opened.num_row_groups):
            group = opened.metadata.row_group(number)
            parts = map(group.column, range(group.num_columns))
            read = (part for part in parts if part.path_in_schema.split(".")[0] in names)
            num_bytes = sum(part.total_uncompressed_size for part in read)
            if (most := max(num_bytes, _LEAST_BYTES_IN_ROW * group.num_rows)) > _MOST_BYTES_IN_GROUP:
                fault = f"row group {number} takes {most / (1 << 30):.1f} GiB, and at most 2 GiB are read at once"
                fix = "write the file with smaller ones (`row_group_size=256` of pyarrow's write_table)"
                raise DataError(f"{file}: {fault}; {fix}")
            if min(group.num_rows, num_bytes) < 0:
                raise ValueError("its footer counts below zero")
            if group.num_rows:
                name = printable(str(file.relative_to(self._root)))
                is_whole = held == {column for column in held if _holds_bytes(group, column)}
                yield _RowGroup(file, name, number, names, group.num_rows, num_bytes, first_row, class_names, is_whole)
            first_row += group.num_rows

    def _wrong_type(self, schema: pa.Schema) -> str | None:
        """The first column of a wrong type, with the right ones; None if all are right."""
        config, reading = self._config, self._reading
        if reading.whole:
            return None
        image = self.image_column_in(set(schema.names)) or config.image_column
        checks = [(image, _FILES, "bytes or paths of images")]
        if config.caption_column != config.label_column:
            checks.append((config.caption_column, {*_TEXT, "null"}, "text or lists of text"))
        if reading.negatives and config.negative_column:
            checks.append((config.negative_column, {*_TEXT, "null"}, "text or lists of text"))
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

    def _read(self, number: int) -> dict[str, pa.ChunkedArray]:
        """The columns of a row group, which is kept in place of the groups that were used longest ago."""
        if number not in self._kept:
            group = self._groups[number]
            used = group.num_bytes + sum(self._groups[kept].num_bytes for kept in self._kept)
            while self._kept and used > self._max_bytes_kept:
                used -= self._groups[self._kept.popitem(last=False)[0]].num_bytes
            table = _decoded(group)
            self._kept[number] = dict(zip(table.column_names, table.columns, strict=True))
        self._kept.move_to_end(number)
        return self._kept[number]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": OrderedDict()}


def files_of(path: str) -> list[Path]:
    """The parquet files of a path: itself, those in or below a folder, or those of a pattern. Raises `DataError` for
    none."""
    whole = expanded(path)
    if whole.is_dir():
        files = [file for file in files_below(whole) if file.suffix.lower() == ".parquet"]
        files = [file for file in files if not _describes(file, files)]
    elif whole.exists():
        files = [whole]
    else:
        files = sorted({Path(name) for name in matches(path) if Path(name).is_file()})
    if not files:
        raise DataError(f"{path}: no parquet files there; name existing ones")
    return files


def _describes(file: Path, files: Sequence[Path]) -> bool:
    """True for a file beside a folder of its name without other parquet files, as img2dataset writes it."""
    folder = file.with_suffix("")
    return folder.is_dir() and not any(other.is_relative_to(folder) for other in files)


def _open(file: Path) -> pq.ParquetFile:
    open_regular(file).close()
    return pq.ParquetFile(file, memory_map=True, pre_buffer=False)


class _Damage(str):
    """Reason why a cell has no value."""

    __slots__ = ()


def _value(cell: pa.Scalar) -> Any:
    if isinstance(cell, pa.ListScalar | pa.LargeListScalar) and len(cell.values or ()) > _MOST_ITEMS:
        return _Damage(f"is a list of {len(cell.values)} items, more than {_MOST_ITEMS}")
    try:
        return cell.as_py()
    except UnicodeDecodeError:
        return _Damage("is not UTF-8 text")
    except _UNREADABLE as error:
        return _Damage(f"cannot be read ({error})")


def _decoded(group: _RowGroup) -> pa.Table:
    """The columns of a row group. It is decoded piece by piece, as the footer does not tell how often a value that the
    file has once is repeated. Raises ValueError for more than 2 GiB."""
    opened = _open(group.file)
    at_once = max(_MOST_BYTES_IN_GROUP // max(group.num_bytes, 1), 1)  # as no value is larger than the group
    pieces, num_bytes = [], 0
    for piece in opened.iter_batches(min(at_once, group.num_rows), [group.number], group.columns, use_threads=False):
        pieces.append(piece)
        num_bytes += piece.nbytes
        if num_bytes > _MOST_BYTES_IN_GROUP:
            raise ValueError(f"its row group is decoded to more than {_MOST_BYTES_IN_GROUP >> 20} MiB")
    return pa.Table.from_batches(pieces)


def _scan_group(group: _RowGroup, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    names = [name for name in columns if name in group.columns]
    num_read = 0
    batches = _open(group.file).iter_batches(_ROWS_PER_SCAN, [group.number], names, use_threads=False)
    with suppress(*_UNREADABLE):
        for batch in batches:
            for cells in zip(*batch.columns, strict=True):
                values = {name: _value(cell) for name, cell in zip(batch.schema.names, cells, strict=True)}
                yield {name: value for name, value in values.items() if not isinstance(value, _Damage)}
                num_read += 1
    yield from repeat({}, group.num_rows - num_read)


def _plain_columns(schema: pa.Schema) -> Iterator[str]:
    """Names of the columns of single texts, numbers, or true and false."""
    for column in schema:
        kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
        is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
        if is_number or _content(kind) == "text":
            yield column.name


def _holds_bytes(group: pq.RowGroupMetaData, column: str) -> bool:
    """True if no row lacks bytes in a column of them, or of structs with them, as the file's statistics tell."""
    parts = (group.column(number) for number in range(group.num_columns))
    for part in parts:
        is_bytes = part.path_in_schema == f"{column}.bytes" or (
            part.path_in_schema == column
            and part.physical_type == "BYTE_ARRAY"
            and part.statistics is not None
            and part.statistics.logical_type.type == "NONE"
        )
        if is_bytes:
            return part.statistics is not None and part.statistics.null_count == 0
    return False


def _content(kind: pa.DataType) -> str:
    """The content of a column of any encoding."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if isinstance(kind, _LISTS):
        return f"list of {_content(kind.value_type)}"
    if any(is_kind(kind) for is_kind in _NUMBERS):
        return "number"
    return _CONTENTS.get(str(kind), "struct" if pa.types.is_struct(kind) else "other")
