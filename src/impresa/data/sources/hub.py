"""Data sets of the `datasets` library: folders of `save_to_disk`, and ids of the Hugging Face hub.

Both are arrow files, which are mapped into memory and read in any order. Images and sounds are the bytes, or the paths,
that the features `Image` and `Audio` store, and are decoded here as those of every other source. Arrow trusts what a
file says of itself, so that each batch of rows is checked before one of them is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, chain
from pathlib import Path
from typing import Any

import pyarrow as pa

from impresa.config.dataset import DatasetConfig
from impresa.data.class_names import ClassNames, names_in_schema
from impresa.data.disk import open_regular
from impresa.data.hub_files import hub_files
from impresa.data.sources.arrow import UNREADABLE, ArrowSource, rows_of, values_of
from impresa.data.sources.base import IMAGES_AND_CAPTIONS, Reading, locate
from impresa.data.sources.rows import Row, found_of, prefixes, word_of
from impresa.errors import DataError
from impresa.foreign_text import printable

_END = b"\xff\xff\xff\xff\0\0\0\0"
"""The last bytes of a whole file."""


@dataclass(frozen=True)
class _File:
    """A file and what is read of it."""

    path: Path
    name: str
    """Of its rows."""
    columns: tuple[str, ...]
    ends: tuple[int, ...]
    """Number of rows up to the end of each batch."""
    class_names: ClassNames
    """Names of the labels in its schema."""
    fault: str | None
    """How the file ends early, if it does."""

    def __len__(self) -> int:
        """Its rows, and one for the fault."""
        return (self.ends[-1] if self.ends else 0) + (self.fault is not None)

    @cached_property
    def batches(self) -> list[pa.RecordBatch]:
        """Mapped anew in each process."""
        with pa.memory_map(str(self.path)) as file:
            found = _batches(pa.ipc.open_stream(file), self.columns)
            return [next(found) for _ in self.ends]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "batches"}


class HubSource(ArrowSource):
    """Samples of one split, in the order of its rows.

    Args:
        path: a folder of `save_to_disk` (of one split, or of several, of which `train` is read), an arrow file, or an
            id, see `impresa.config.hub_names`; for the others see `RowSource`.

    Raises:
        DataError: there are no such data, a file is no arrow stream or lacks a column, or there are no rows.
        ConfigError: an id needs the `datasets` library, which is not installed.
    """

    def __init__(
        self,
        path: Path | str,
        config: DatasetConfig,
        reading: Reading = IMAGES_AND_CAPTIONS,
        shrink_to_px: int | None = None,
    ) -> None:
        found = hub_files(str(path))
        super().__init__(found.root, config, reading, shrink_to_px)
        self._allowed = tuple(chain.from_iterable(map(prefixes, found.allowed)))
        self._files = [self._file_at(file) for file in found.files]
        self._ends = list(accumulate(map(len, self._files)))
        self._faults: dict[tuple[int, int], str | None] = {}  # what is wrong with a batch, by file and number
        if not any(file.ends for file in self._files):
            fault = next((f"{file.name} {file.fault}" for file in self._files if file.fault), "the files are empty")
            raise DataError(f"{found.name}: no rows ({fault}); name a data set that has some")

    def __len__(self) -> int:
        return self._ends[-1]

    def row(self, index: int) -> Row:
        number, row = locate(index, self._ends)
        file, id = self._files[number], f"{self._files[number].name}:{row}"
        if not file.ends or row == file.ends[-1]:
            return Row(f"{file.name}:end", {}, self._root, f"the file {file.fault}")
        batch, place = locate(row, file.ends)
        if fault := self._fault(number, batch):
            return Row(id, {}, self._root, fault)
        columns = file.batches[batch].columns
        values, fault = values_of({name: column[place] for name, column in zip(file.columns, columns, strict=True)})
        return Row(id, values, self._root, fault, file.class_names)

    def scan(self, columns: Sequence[str]) -> Iterator[Row]:
        """All rows, without damaged cells; those of a damaged batch have none."""
        for number, file in enumerate(self._files):
            names, first = [name for name in columns if name in file.columns], 0
            for batch, end in enumerate(file.ends):
                is_whole = self._fault(number, batch) is None
                rows = rows_of(file.batches[batch].select(names)) if is_whole else iter(())
                for row in range(first, end):
                    yield Row(f"{file.name}:{row}", next(rows, {}), self._root, None, file.class_names)
                first = end
            if file.fault is not None:
                yield Row(f"{file.name}:end", {}, self._root, f"the file {file.fault}")

    def origin(self, index: int) -> tuple[str, str]:
        row, (number, _) = self.row(index), locate(index, self._ends)
        try:
            is_whole = not any(isinstance(file, str) for file in self.files(row))
        except ValueError:
            is_whole = False
        if not is_whole:
            return super().origin(index)
        return row.id, word_of(self.columns, found_of(self._files[number].path))

    @property
    def _names(self) -> list[str]:
        return list(chain.from_iterable(file.columns for file in self._files))

    def _file_at(self, path: Path) -> _File:
        """What is read of a file, found in one pass that reads none of its values."""
        ends, fault = list[int](), None
        try:
            with open_regular(path) as opened, pa.memory_map(str(path)) as file:
                size = opened.seek(0, 2)
                reader = pa.ipc.open_stream(file)
                columns = self.names_in(reader.schema, path)
                try:
                    self._count(_batches(reader, columns), size, ends)
                    opened.seek(max(size - len(_END), 0))
                    fault = None if opened.read() == _END else "ends early"
                except UNREADABLE as error:
                    fault = f"cannot be read to its end ({_first_line(error)})"
        except DataError:
            raise
        except UNREADABLE as error:
            fix = "name what `save_to_disk` of the datasets library wrote"
            raise DataError(f"{path}: is no arrow stream ({_first_line(error)}); {fix}") from error
        if fault:
            fault += f", after {ends[-1] if ends else 0} rows"
        names = names_in_schema(reader.schema.metadata, self._config.label_column)
        return _File(path, printable(path.name), columns, tuple(ends), names, fault)

    @staticmethod
    def _count(batches: Iterator[pa.RecordBatch], size: int, ends: list[int]) -> None:
        """Add the end of each batch to `ends`. Its rows and its values lie in the file, or arrow has unpacked them."""
        num_rows = num_bytes = 0
        for batch in batches:
            num_rows += batch.num_rows
            num_bytes += sum(c.get_total_buffer_size() for c in batch.columns if not pa.types.is_dictionary(c.type))
            if max(num_rows, num_bytes) > size:
                raise ValueError("it is compressed, or counts more than it has")
            ends.append(num_rows)

    def _fault(self, number: int, batch: int) -> str | None:
        """What is wrong with a batch, found out before a value of it is read."""
        if (number, batch) not in self._faults:
            try:
                self._files[number].batches[batch].validate(full=True)
                self._faults[number, batch] = None
            except UNREADABLE as error:
                self._faults[number, batch] = f"the row cannot be read, for its batch is damaged ({_first_line(error)})"
        return self._faults[number, batch]


def first_rows(path: str, count: int) -> list[dict[str, Any]]:
    """The values of the first rows of a data set, fewer if its first batch has not so many, or none if it is damaged;
    see `hub_files` for errors."""
    file = hub_files(path).files[0]
    try:
        with pa.memory_map(str(file)) as opened:
            reader = pa.ipc.open_stream(opened)
            part = next(_batches(reader, reader.schema.names)).slice(0, count)
            part.validate(full=True)
            return list(rows_of(part))
    except (*UNREADABLE, KeyError, StopIteration):
        return []


def _batches(reader: pa.RecordBatchStreamReader, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """The batches that have rows, of sound lengths. Raises one of `UNREADABLE` at the first that is not sound."""
    for batch in reader:
        part = batch.select(list(columns))
        part.validate()
        if part.num_rows:
            yield part


def _first_line(error: BaseException) -> str:
    return printable((str(getattr(error, "strerror", None) or error) or type(error).__name__).splitlines()[0])
