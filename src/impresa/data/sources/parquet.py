"""Parquet files with images as bytes (or paths) and captions, read a row group at a time.

An image is a column of bytes, of paths relative to the file, or of Hugging Face's struct of `bytes` and `path`; so is a
sound, where sound is read. Then a sample needs only two of image, caption and sound: the cells of the others are null,
or the column is not there. Where questions are asked for, a row holds them in one of the layouts of
`impresa.data.sources.dialogues`, and needs no caption.
A row group is decoded when one of its rows is asked for, and the last ones are kept up to a bound in bytes. Where the
data are larger than that, `blocks` tells the sampler to shuffle within what fits. Files are opened for each row group
and mapped into memory, so that the source can be sent to worker processes.
"""

from __future__ import annotations

import logging
import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import accumulate, chain, repeat
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from impresa.config.experiment import DatasetConfig
from impresa.data.audio import Clip, decode_audio
from impresa.data.dialogue import Dialogue
from impresa.data.images import decode_image
from impresa.data.sample import Sample
from impresa.data.sources.base import BadSample, Blocks
from impresa.data.sources.columns import (
    Wanted,
    is_web_address,
    read_captions,
    read_label,
    read_optional_captions,
)
from impresa.data.sources.dialogues import (
    MESSAGES,
    dialogue_columns,
    missing_columns,
    read_dialogues,
)
from impresa.data.text import printable
from impresa.errors import DataError

_log = logging.getLogger(__name__)

_MOST_BYTES_KEPT = 256 << 20
_ROWS_PER_SCAN = 256
_TEXT = "text or lists of text"


@dataclass(frozen=True)
class _RowGroup:
    """One row group of one file."""

    file: Path
    number: int
    num_rows: int
    num_bytes: int
    """Size in memory, about, of the columns that are read."""
    first_row: int
    """Number in the file of its first row."""


class ParquetSource:
    """Samples of one or more parquet files, in the order of files and rows."""

    def __init__(
        self,
        files: Sequence[Path],
        config: DatasetConfig,
        *,
        shrink_to_px: int | None = None,
        audio_seconds: float | None = None,
        dialogues: bool = False,
        max_bytes_kept: int = _MOST_BYTES_KEPT,
    ) -> None:
        """
        Args:
            files: the parquet files, at least one.
            config: its columns are used.
            shrink_to_px: side to which images will be shrunk, see `decode_image`; None decodes them as they are.
            audio_seconds: read sounds too, each up to so many seconds; None reads none.
            dialogues: read questions and answers too; then a sample needs them, and no caption.
            max_bytes_kept: bound of the row groups kept in memory; one group is kept whatever its size.

        Raises:
            DataError: a file is damaged or no parquet, lacks a column, or there are no rows at all.
        """
        self._config = config
        self._shrink_to_px = shrink_to_px
        self._audio_seconds = audio_seconds
        self._max_bytes_kept = max_bytes_kept
        self._folder = Path(os.path.commonpath([file.parent for file in files]))
        self._wanted = Wanted(sound=audio_seconds is not None, dialogues=dialogues)
        self._groups = [group for file in files for group in _row_groups(file, config, self._wanted)]
        self._ends = list(accumulate(group.num_rows for group in self._groups))
        self._kept: OrderedDict[int, dict[str, pa.ChunkedArray]] = OrderedDict()
        if not self._groups:
            raise DataError(f"{files[0]}: no rows; name parquet files that have some")
        if self._largest > max_bytes_kept:
            note = "%s: a row group takes %d MiB in each worker; files with smaller row groups need less memory"
            _log.warning(note, self._folder, self._largest >> 20)

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        number = bisect_right(self._ends, index)
        group = self._groups[number]
        row = index - self._ends[number] + group.num_rows
        id = printable(f"{group.file.relative_to(self._folder)}:{group.first_row + row}")
        try:
            cells = {name: column[row].as_py() for name, column in self._columns(number).items()}
            captions = self._read_captions(cells.get(self._config.caption_column))
            dialogues = read_dialogues(cells, self._config) if self._wanted.dialogues else ()
            image_cell = cells.get(self._config.image_column)
            audio = self._read_audio(cells.get(self._config.audio_column), group.file.parent)
            label = read_label(cells.get(self._config.label_column))
            has_image = not _is_empty(image_cell)
            lack = self._wanted.lack(image=has_image, audio=audio is not None, captions=bool(captions))
            if lack and self._wanted.sound:
                raise ValueError(lack)
            image = None
            if has_image or not self._wanted.sound:
                image = decode_image(_file_bytes(image_cell, group.file.parent, "image"), self._shrink_to_px)
        except OSError as error:
            raise BadSample(id, f"the row cannot be read ({error.strerror or error})") from error
        except ValueError as error:
            raise BadSample(id, str(error)) from error
        return Sample(id=id, image=image, audio=audio, captions=captions, label=label, dialogues=dialogues)

    def captions(self) -> Iterator[str]:
        return chain.from_iterable(self.captions_by_sample())

    def captions_by_sample(self) -> Iterator[tuple[str, ...]]:
        for _, cell in self._scan(self._config.caption_column):
            try:
                yield self._read_captions(cell.as_py())
            except ValueError:
                yield ()

    def dialogues(self) -> Iterator[Dialogue]:
        return chain.from_iterable(self.dialogues_by_sample())

    def dialogues_by_sample(self) -> Iterator[tuple[Dialogue, ...]]:
        for cells in self._scan_rows(dialogue_columns(self._config)) if self._wanted.dialogues else ():
            try:
                yield read_dialogues(cells, self._config)
            except ValueError:
                yield ()

    def blocks(self) -> Blocks | None:
        if sum(group.num_bytes for group in self._groups) <= self._max_bytes_kept:
            return None
        lengths = tuple(group.num_rows for group in self._groups)
        return Blocks(lengths, num_held=max(self._max_bytes_kept // self._largest, 1))

    def image_keys(self) -> Iterator[str]:
        """A path, or a hash of the bytes; the latter reads all images once. Sounds stand in for images not there."""
        images = self._scan(self._config.image_column)
        if not self._wanted.sound:
            return (self._key(file, cell.as_py()) for file, cell in images)
        both = zip(images, self._scan(self._config.audio_column), strict=True)
        return (
            self._key(file, sound.as_py() if _is_empty(image.as_py()) else image.as_py())
            for (file, image), (_, sound) in both
        )

    def _key(self, file: Path, cell: Any) -> str:
        if isinstance(cell, dict):
            cell = cell.get("bytes") or cell.get("path")
        if isinstance(cell, bytes):
            return blake2b(cell, digest_size=16).hexdigest()
        return os.path.relpath(file.parent / (cell or ""), self._folder)

    def _read_captions(self, cell: Any) -> tuple[str, ...]:
        may_lack = self._wanted.sound or self._wanted.dialogues
        return read_optional_captions(cell) if may_lack else read_captions(cell)

    def _read_audio(self, cell: Any, folder: Path) -> Clip | None:
        if not self._wanted.sound or _is_empty(cell):
            return None
        data = _file_bytes(cell, folder, "sound")
        try:
            return decode_audio(data, self._audio_seconds)
        except ValueError as error:
            raise ValueError(f"the sound {error}") from error

    @property
    def _largest(self) -> int:
        return max(group.num_bytes for group in self._groups)

    def _columns(self, number: int) -> dict[str, pa.ChunkedArray]:
        """The columns of a row group, from memory if it was read lately."""
        if number in self._kept:
            self._kept.move_to_end(number)
            return self._kept[number]
        group = self._groups[number]
        self._make_room(group.num_bytes)
        columns = _columns_read(self._config, self._wanted)
        table = _open(group.file).read_row_group(group.number, columns=columns, use_threads=False)
        self._kept[number] = dict(zip(table.column_names, table.columns, strict=True))
        return self._kept[number]

    def _make_room(self, num_bytes: int) -> None:
        used = sum(self._groups[number].num_bytes for number in self._kept)
        while self._kept and used + num_bytes > self._max_bytes_kept:
            number, _ = self._kept.popitem(last=False)
            used -= self._groups[number].num_bytes

    def _scan(self, column: str) -> Iterator[tuple[Path, pa.Scalar]]:
        """One column of all rows, without keeping it. A damaged row group gives as many empty cells."""
        for file, num_rows, batch in self._batches([column]):
            empty = repeat(pa.scalar(None), num_rows)
            for cell in empty if batch is None or not batch.num_columns else batch.column(0):
                yield file, cell

    def _scan_rows(self, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Some columns of all rows, without keeping them. A damaged row group gives as many empty rows."""
        for _, num_rows, batch in self._batches(columns):
            yield from repeat({}, num_rows) if batch is None or not batch.num_columns else batch.to_pylist()

    def _batches(self, columns: Sequence[str]) -> Iterator[tuple[Path, int, pa.RecordBatch | None]]:
        """(file, number of rows, the rows) of all rows, some at a time; None in place of what is damaged."""
        for group in self._groups:
            batches = _open(group.file).iter_batches(
                _ROWS_PER_SCAN, row_groups=[group.number], columns=list(columns), use_threads=False
            )
            num_read = 0
            try:
                for batch in batches:
                    yield group.file, batch.num_rows, batch
                    num_read += batch.num_rows
            except (OSError, ValueError):
                yield group.file, group.num_rows - num_read, None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": OrderedDict()}


def _row_groups(file: Path, config: DatasetConfig, wanted: Wanted) -> Iterator[_RowGroup]:
    try:
        opened = _open(file)
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: no readable parquet file ({error}); name parquet files") from error
    _check_columns(file, opened.schema_arrow, config, wanted)
    names = _columns_read(config, wanted)
    first_row = 0
    for number in range(opened.num_row_groups):
        group = opened.metadata.row_group(number)
        parts = (group.column(i) for i in range(group.num_columns))
        num_bytes = sum(part.total_uncompressed_size for part in parts if part.path_in_schema.split(".")[0] in names)
        if group.num_rows:
            yield _RowGroup(file, number, group.num_rows, num_bytes, first_row)
        first_row += group.num_rows


def _open(file: Path) -> pq.ParquetFile:
    return pq.ParquetFile(file, memory_map=True, pre_buffer=False)


def _columns_read(config: DatasetConfig, wanted: Wanted) -> list[str]:
    sound = [config.audio_column] if wanted.sound else []
    asked = dialogue_columns(config) if wanted.dialogues else ()
    return list(dict.fromkeys([config.image_column, config.caption_column, config.label_column, *sound, *asked]))


def _check_columns(file: Path, schema: pa.Schema, config: DatasetConfig, wanted: Wanted) -> None:
    found = ", ".join(schema.names)
    if wanted.dialogues and (fault := missing_columns(set(schema.names), config)):
        raise DataError(f"{file}: {fault}")
    needs_caption = not (wanted.sound or wanted.dialogues)
    for key in ("audio_column" if wanted.sound else "image_column", *(["caption_column"] if needs_caption else [])):
        if (column := getattr(config, key)) not in schema.names:
            raise DataError(f"{file}: no column {column!r} (there are: {found}); set dataset.{key}")
    if not wanted.dialogues and not {config.image_column, config.caption_column} & set(schema.names):
        fault = f"neither {config.image_column!r} nor {config.caption_column!r} is a column (there are: {found})"
        raise DataError(f"{file}: {fault}; set dataset.image_column or dataset.caption_column")
    for what, column in (("images", config.image_column), ("sounds", config.audio_column if wanted.sound else None)):
        if column in schema.names and not _is_file(kind := schema.field(column).type):
            raise DataError(f"{file}: column {column!r} is {kind}; it must hold bytes or paths of {what}")
    if config.caption_column in schema.names and not _is_caption(kind := schema.field(config.caption_column).type):
        fault = f"column {config.caption_column!r} is {kind}"
        raise DataError(f"{file}: {fault}; it must hold {_TEXT}")
    if wanted.dialogues:
        _check_dialogue_columns(file, schema, config)


def _check_dialogue_columns(file: Path, schema: pa.Schema, config: DatasetConfig) -> None:
    for column in (config.question_column, config.answer_column, *MESSAGES):
        if column not in schema.names or pa.types.is_null(kind := schema.field(column).type):
            continue
        fits, what = (_is_list, "lists of what was said") if column in MESSAGES else (_is_caption, _TEXT)
        if not fits(kind):
            raise DataError(f"{file}: column {column!r} is {kind}; it must hold {what}")


def _is_file(kind: pa.DataType) -> bool:
    return _is_bytes(kind) or _is_text(kind) or pa.types.is_struct(kind)


def _is_caption(kind: pa.DataType) -> bool:
    return _is_text(kind) or (_is_list(kind) and _is_text(kind.value_type))


def _is_bytes(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind)


def _is_empty(cell: Any) -> bool:
    """Whether a cell names no file and holds none."""
    return not (cell.get("bytes") or cell.get("path") if isinstance(cell, dict) else cell)


def _file_bytes(cell: Any, folder: Path, what: str) -> bytes:
    """The bytes of the file that a cell holds or names.

    Raises:
        ValueError: there is none, or it cannot be read; the message is the reason alone.
    """
    if isinstance(cell, dict):
        cell = cell.get("bytes") or cell.get("path")
    if not cell:
        raise ValueError(f"there is no {what}")
    if isinstance(cell, bytes):
        return cell
    if is_web_address(cell):
        raise ValueError(f"the {what} is an address on the web; download it first")
    try:
        return (folder / cell).read_bytes()
    except OSError as error:
        raise ValueError(f"the {what} cannot be read ({error.strerror or error})") from error
