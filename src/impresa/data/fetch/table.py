"""A table whose rows name pictures by their address on the web: parquet, csv, or JSON lines."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from impresa.config.dataset import DatasetConfig
from impresa.config.paths import expanded, looked_in, matches, missing_name
from impresa.config.shard_names import is_address, shown_address
from impresa.data.disk import open_regular
from impresa.data.sources import kind_of
from impresa.data.sources.columns import ROWS, cells_of, only_column, text_columns
from impresa.data.sources.dialogues import holds_dialogues
from impresa.data.sources.parquet_files import files_of
from impresa.data.sources.tables import open_table
from impresa.data.text import is_unicode
from impresa.errors import DataError
from impresa.foreign_text import printable

if TYPE_CHECKING:
    import pyarrow as pa

Cells = Mapping[str, Any]

CAPTION = DatasetConfig.caption_column
"""The name that captions have in shards, whatever the table calls them."""
_OF_PIXMO = "image_url"
_HASHES = ("image_sha256", "sha256")
_ADDRESS = re.compile(r"\s*https?://\S", re.IGNORECASE)
_HASH = re.compile(r"[0-9a-f]{64}", re.IGNORECASE)
_CHUNK = 1 << 20
_ROWS_AT_ONCE = 256


@dataclass(frozen=True)
class Columns:
    """The columns of a table that are not only carried along; None for one that there is not."""

    url: str
    caption: str | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class TableRow:
    """A row of the table."""

    url: str | None
    """Its address; None if there is none."""
    cells: str = "{}"
    """All columns as JSON in ASCII, captions under the name `caption`."""
    sha256: str | None = None
    """What the table says that its file has, in lower case."""


@dataclass(frozen=True)
class Table:
    """The files of a table, and its columns."""

    path: str
    files: tuple[Path, ...]
    columns: Columns

    def digest(self) -> str:
        """A word for the content of the files, wherever they lie."""
        total = blake2b(digest_size=16)
        for file in self.files:
            with open_regular(file) as opened:
                for chunk in iter(partial(opened.read, _CHUNK), b""):
                    total.update(chunk)
        return total.hexdigest()

    def rows(self) -> Iterator[TableRow]:
        """All rows in order."""
        for file in self.files:
            for cells in _cells_in(file, self.columns.url):
                yield TableRow(None) if cells is None else self._row(cells)

    def _row(self, cells: Cells) -> TableRow:
        url, caption, sha256 = (
            None if name is None else cells.get(name)
            for name in (self.columns.url, self.columns.caption, self.columns.sha256)
        )
        if isinstance(url, list) and len(url) == 1:
            url = url[0]
        if not isinstance(url, str) or not url.strip() or not is_unicode(url):
            return TableRow(None)
        kept = {name: value for name, value in cells.items() if not (value is None or value != value)}  # noqa: PLR0124
        if self.columns.caption not in (None, CAPTION):
            kept.pop(str(self.columns.caption), None)
            kept[CAPTION] = caption
        expected = sha256.strip().lower() if isinstance(sha256, str) and _HASH.fullmatch(sha256.strip()) else None
        return TableRow(url.strip(), json.dumps(kept, default=str), expected)


def open_addresses(
    path: str, *, url_column: str | None = None, caption_column: str | None = None, sha256_column: str | None = None
) -> Table:
    """The table at a path; columns that are not named are those that its first rows leave no doubt about.

    Raises:
        DataError: there is no such table, it has no header, a named column is missing, or it is not plain which one
            holds the addresses or the captions.
    """
    files = _files(path)
    rows = [cells for cells in islice(_cells_in(files[0], url_column), ROWS) if cells is not None]
    if not rows:
        raise DataError(f"{path}: no rows that can be read; name a table with some")
    found = dict.fromkeys(name for cells in rows for name in cells)
    if row := next(filter(_is_address, found), None):
        raise DataError(f"{path}: its first line is no header, as {row:.60} is in it; put the columns' names above it")
    for option, name in (("url", url_column), ("caption", caption_column), ("sha256", sha256_column)):
        if name is not None and name not in found:
            there = ", ".join(map(printable, found)) or "none"
            raise DataError(f"{path}: there is no column {name!r} (there are: {there}); mend --{option}-column")
    url = url_column or _address_column(path, rows, list(found))
    captions = caption_column or _caption_column(path, rows, [name for name in found if name != url])
    hashes = (name for name in _HASHES if (cells := cells_of(rows, name)) and all(map(_is_hash, cells)))
    return Table(path, tuple(files), Columns(url, captions, sha256_column or next(hashes, None)))


def _files(path: str) -> list[Path]:
    if is_address(path):
        raise DataError(f"{shown_address(path)}: a table is read from a file; download it first")
    if (kind := kind_of(DatasetConfig(), path)) == "parquet":
        return files_of(path)
    if kind != "folder" or expanded(path).is_dir():
        raise DataError(
            f"{path}: is no table; name one (parquet, csv, tsv or JSON lines), or a folder of parquet files"
        )
    try:
        missing = missing_name(path)
    except ValueError as error:
        raise DataError(f"{path}: {error}; name fewer tables") from error
    if missing is not None:
        raise DataError(f"{missing}: there is no such file; name an existing table{looked_in(path)}")
    return sorted(map(Path, matches(path)))


def _cells_in(file: Path, url_column: str | None) -> Iterator[Cells | None]:
    """The cells of each row by column; None for one that cannot be read."""
    if file.suffix.lower() == ".parquet":
        yield from _cells_in_parquet(file)
        return
    wanted = {_OF_PIXMO, "url", CAPTION, *([url_column] if url_column else ())}
    with open_table(file, DatasetConfig(), wanted) as table:
        for _, cells in table.rows:
            yield cells if isinstance(cells, dict) else None


def _cells_in_parquet(file: Path) -> Iterator[Cells | None]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        open_regular(file).close()
        opened = pq.ParquetFile(file, memory_map=True, pre_buffer=False)
        # Pictures that a table holds beside their addresses stay where they are.
        names = [column.name for column in opened.schema_arrow if "binary" not in str(column.type)]
        for batch in opened.iter_batches(_ROWS_AT_ONCE, columns=names, use_threads=False):
            yield from _rows_of(batch)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(f"{file}: no readable parquet file ({error}); name parquet files") from error


def _rows_of(batch: pa.RecordBatch) -> list[Cells | None]:
    try:
        return list(batch.to_pylist())
    except ValueError:  # a text that is not UTF-8; the other rows are as good as ever
        if batch.num_rows == 1:
            return [None]
        return [row for number in range(batch.num_rows) for row in _rows_of(batch.slice(number, 1))]


def _address_column(path: str, rows: Sequence[Cells], found: Sequence[str]) -> str:
    if _OF_PIXMO in found:
        return _OF_PIXMO
    cells = {name: cells_of(rows, name) for name in found}
    names = [name for name in found if 2 * sum(map(_is_address, cells[name])) > len(cells[name])]
    return only_column(path, "addresses", "--url-column", names)


def _caption_column(path: str, rows: Sequence[Cells], found: Sequence[str]) -> str | None:
    """The column of captions; None where dialogues stand in its place, and where there is no text at all."""
    if CAPTION in found:
        return CAPTION
    if holds_dialogues(set(found), DatasetConfig()):
        return None
    texts = text_columns(rows, [name for name in found if not all(map(_is_hash, cells_of(rows, name)))])
    return only_column(path, "captions", "--caption-column", texts) if texts else None


def _is_address(cell: Any) -> bool:
    return isinstance(cell, str) and _ADDRESS.match(cell) is not None


def _is_hash(cell: Any) -> bool:
    return isinstance(cell, str) and _HASH.fullmatch(cell.strip()) is not None
