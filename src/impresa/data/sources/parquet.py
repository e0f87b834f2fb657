"""Parquet files with images as bytes (or paths) and captions, read a row group at a time.

Images and sounds are columns of bytes, of paths relative to the file, or of Hugging Face's struct of `bytes` and
`path`. A row group is decoded when one of its rows is read, and the last ones are kept up to a bound in bytes. If the
data are larger than that, `blocks` makes the sampler shuffle within as many row groups as are kept. Files are mapped
into memory, and each process opens its own (`ParquetFiles`). Files at an address are copied whole into a cache of
bounded size when they are first read from; where not all fit, row groups are shuffled within the files that do.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from dataclasses import dataclass
from itertools import accumulate, chain, groupby, repeat
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from impresa.config.dataset import DatasetConfig
from impresa.config.paths import expanded
from impresa.data.class_names import ClassNames, names_in_schema
from impresa.data.shards import remote
from impresa.data.shards.cache import ShardCache, cache_folder
from impresa.data.shards.places import AT_ONCE
from impresa.data.sources.arrow import UNREADABLE, ArrowSource, rows_of, values_of
from impresa.data.sources.base import IMAGES_AND_CAPTIONS, Blocks, Reading, locate
from impresa.data.sources.parquet_files import ParquetFiles, Place, opened_once, places_of, root_of, shown
from impresa.data.sources.rows import Row, found_of, prefixes, word_of
from impresa.errors import DataError
from impresa.foreign_text import printable

logger = logging.getLogger(__name__)

_MOST_BYTES_KEPT = 256 << 20
_MOST_BYTES_IN_GROUP = 2 << 30
"""A row group is read as a whole, in each worker: larger ones are refused."""
_LEAST_BYTES_IN_ROW = 64
"""That a row counts for, whatever the file says: rows without a value take no bytes there, but time and memory here."""
_ROWS_PER_SCAN = 256


@dataclass(frozen=True)
class _RowGroup:
    """Row group `number` of a file."""

    file: Place
    name: str
    """Path of the file relative to the folder of all files."""
    folder: Path
    """That paths in its cells are relative to."""
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
        return Row(f"{self.name}:{self.first_row + number}", cells, self.folder, fault, self.class_names)


class ParquetSource(ArrowSource):
    """Samples of one or more parquet files, in the order of files and rows.

    Args:
        path: a file, a folder with such files in it or below it, or a pattern like `data/part-*.parquet`, or an address
            of one of them that fsspec can open; for the next three arguments see `RowSource`.
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
        places = self._places(str(path))
        super().__init__(root_of(str(path), places), config, reading, shrink_to_px)
        if (folder := expanded(str(path))).is_dir():
            self._allowed = prefixes(folder)  # the files may all lie in a folder below it
        self._max_bytes_kept = max_bytes_kept
        self._max_bytes_cached = round(config.shard_cache_gib * (1 << 30))
        self._files = ParquetFiles(ShardCache(cache_folder(), self._max_bytes_cached))
        with ThreadPoolExecutor(AT_ONCE) as pool:
            self._groups = list(chain.from_iterable(pool.map(self._row_groups, places)))
        self._ends = list(accumulate(group.num_rows for group in self._groups))
        self._kept: OrderedDict[int, dict[str, pa.ChunkedArray]] = OrderedDict()
        self._damaged: dict[int, ValueError] = {}  # what is wrong with a row group, by number
        if not self._groups:
            raise DataError(f"{shown(places[0])}: no rows; name parquet files that have some")
        self._largest = max(group.num_bytes for group in self._groups)
        if self._largest > max_bytes_kept:
            fault = f"{self._root}: a row group takes {self._largest >> 20} MiB in each worker"
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
        except DataError as error:
            return group.row(row, {}, f"the file cannot be fetched ({error})")
        except UNREADABLE as error:
            if isinstance(error, ValueError):  # it would be the same for the next row; memory may be free again
                self._damaged[number] = error
            return group.row(row, {}, f"the row cannot be read ({getattr(error, 'strerror', None) or error})")
        return group.row(row, *values_of(cells))

    def origin(self, index: int) -> tuple[str, str]:
        number, row = locate(index, self._ends)
        group = self._groups[number]
        if not group.is_whole:
            return super().origin(index)
        name, file = group.row(row, {}).id, group.file
        return name, word_of(self.columns, found_of(file) if isinstance(file, Path) else file.key)

    def scan(self, columns: Sequence[str]) -> Iterator[Row]:
        """All rows, without keeping them, and without damaged cells; those of a damaged row group have none."""
        for file, of_file in groupby(self._groups, key=lambda group: group.file):
            groups = list(of_file)
            names = [name for name in columns if name in groups[0].columns]
            with ExitStack() as stack:
                opened = None
                with suppress(*UNREADABLE, DataError):
                    opened = stack.enter_context(self._opened(file, names))
                for group in groups:
                    cells = self._scan_group(group, opened, names)
                    yield from (group.row(number, values) for number, values in enumerate(cells))

    @property
    def _names(self) -> list[str]:
        return list(chain.from_iterable(group.columns for group in self._groups))

    def blocks(self) -> Blocks | None:
        files, files_held = self._files_held()
        if sum(group.num_bytes for group in self._groups) <= self._max_bytes_kept and not files:
            return None
        lengths = tuple(group.num_rows for group in self._groups)
        num_held = max(self._max_bytes_kept // self._largest, 1)
        return Blocks(lengths, num_held, files, files_held)

    def _files_held(self) -> tuple[tuple[int, ...], int]:
        """The file of each row group, and how many fit into half of the cache, where not all do; the other half is for
        the next ones."""
        places = list(dict.fromkeys(group.file for group in self._groups))
        sizes = [0 if isinstance(place, Path) else place.num_bytes or 0 for place in places]
        if sum(sizes) <= self._max_bytes_cached:
            return (), 0
        numbers = {place: number for number, place in enumerate(places)}
        return tuple(numbers[group.file] for group in self._groups), max(self._max_bytes_cached // (2 * max(sizes)), 1)

    def _places(self, path: str) -> Sequence[Place]:
        """The files of a path, in order."""
        return places_of(path)

    def _class_names_in(self, schema: pa.Schema) -> ClassNames:
        """The names of the labels that a file has."""
        return names_in_schema(schema.metadata, self._config.label_column)

    def _row_groups(self, file: Place) -> list[_RowGroup]:
        def look() -> list[_RowGroup]:
            with opened_once(file) as opened:
                return list(self._row_groups_in(file, opened))

        try:
            return look() if isinstance(file, Path) else remote.tried(file.place, look)
        except DataError:
            raise
        except UNREADABLE as error:
            raise DataError(f"{file}: no readable parquet file ({error}); name parquet files") from error

    def _row_groups_in(self, file: Place, opened: pq.ParquetFile) -> Iterator[_RowGroup]:
        short = printable(str(file.relative_to(self._root)) if isinstance(file, Path) else file.name)
        folder = file.parent if isinstance(file, Path) else self._root
        names = self.names_in(opened.schema_arrow, shown(file))
        held = self.held_among(set(opened.schema_arrow.names))
        class_names = self._class_names_in(opened.schema_arrow)
        kinds = [opened.schema.column(number).physical_type for number in range(len(opened.schema))]
        first_row = 0
        for number in range(opened.num_row_groups):
            group = opened.metadata.row_group(number)
            parts = [group.column(place) for place in range(group.num_columns)]
            if [part.physical_type for part in parts] != kinds:  # pyarrow would end the process
                raise ValueError("its footer contradicts itself")
            read = (part for part in parts if part.path_in_schema.split(".")[0] in names)
            num_bytes = sum(part.total_uncompressed_size for part in read)
            if (most := max(num_bytes, _LEAST_BYTES_IN_ROW * group.num_rows)) > _MOST_BYTES_IN_GROUP:
                fault = f"row group {number} takes {most / (1 << 30):.1f} GiB, and at most 2 GiB are read at once"
                fix = "write the file with smaller ones (`row_group_size=256` of pyarrow's write_table)"
                raise DataError(f"{shown(file)}: {fault}; {fix}")
            if min(group.num_rows, num_bytes) < 0:
                raise ValueError("its footer counts below zero")
            if group.num_rows:
                is_whole = held == {column for column in held if _holds_bytes(group, column)}
                sizes = group.num_rows, num_bytes, first_row
                yield _RowGroup(file, short, folder, number, names, *sizes, class_names, is_whole)
            first_row += group.num_rows

    def _read(self, number: int) -> dict[str, pa.ChunkedArray]:
        """The columns of a row group, which is kept in place of the groups that were used longest ago."""
        if number not in self._kept:
            group = self._groups[number]
            used = group.num_bytes + sum(self._groups[kept].num_bytes for kept in self._kept)
            while self._kept and used > self._max_bytes_kept:
                used -= self._groups[self._kept.popitem(last=False)[0]].num_bytes
            table = _decoded(group, self._files[group.file])
            self._kept[number] = dict(zip(table.column_names, table.columns, strict=True))
        self._kept.move_to_end(number)
        return self._kept[number]

    def _scan_group(
        self, group: _RowGroup, opened: pq.ParquetFile | None, names: list[str]
    ) -> Iterator[dict[str, Any]]:
        num_read = 0
        with suppress(*UNREADABLE):
            for batch in (
                opened.iter_batches(_ROWS_PER_SCAN, [group.number], names, use_threads=False) if opened else ()
            ):
                for values in rows_of(batch):
                    yield values
                    num_read += 1
        yield from repeat({}, group.num_rows - num_read)

    def _opened(self, file: Place, names: Sequence[str]) -> AbstractContextManager[pq.ParquetFile]:
        """A file of which some columns are read; one at an address is not copied for texts, which are small in it."""
        reads_once = not isinstance(file, Path) and not self.held_among(set(names))
        return opened_once(file) if reads_once else nullcontext(self._files[file])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": OrderedDict()}


def _decoded(group: _RowGroup, opened: pq.ParquetFile) -> pa.Table:
    """The columns of a row group. It is decoded piece by piece, as the footer does not tell how often a value that the
    file has once is repeated. Raises ValueError for more than 2 GiB."""
    at_once = max(_MOST_BYTES_IN_GROUP // max(group.num_bytes, 1), 1)  # as no value is larger than the group
    pieces, num_bytes = [], 0
    for piece in opened.iter_batches(min(at_once, group.num_rows), [group.number], group.columns, use_threads=False):
        pieces.append(piece)
        num_bytes += piece.nbytes
        if num_bytes > _MOST_BYTES_IN_GROUP:
            raise ValueError(f"its row group is decoded to more than {_MOST_BYTES_IN_GROUP >> 20} MiB")
    return pa.Table.from_batches(pieces)


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
