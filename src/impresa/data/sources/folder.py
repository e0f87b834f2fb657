"""A folder of images (and sounds) with captions beside them. Captions are found in this order:

1. Every `metadata.jsonl`, `metadata.csv`, `captions.jsonl` and `captions.csv` in the folder or below it: one row per
   sample, with the image's path (relative to the file that names it) and its caption.
2. Without such a file: one other `*.jsonl` or `*.csv` at the top of the folder. Any table can be named itself, in place
   of its folder. Where questions are read, a single `*.json` file that is a list of rows will do too.
3. Without any: every image in the folder or below it, its captions in a text file of the same name (`cat.jpg`,
   `cat.txt`), one caption per line. Where sounds are read, `cat.wav` (flac, ogg, mp3) lies beside `cat.jpg`.
"""

from __future__ import annotations

import codecs
import csv
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from PIL import Image

from impresa.config.experiment import DatasetConfig
from impresa.config.paths import expanded
from impresa.data.image_files import FORMATS
from impresa.data.sources.base import IMAGES_AND_CAPTIONS, Reading
from impresa.data.sources.rows import IMAGE_NAMES, Row, RowSource, is_web_address
from impresa.data.text import printable, read_captions
from impresa.errors import DataError

METADATA_NAMES = ("metadata.jsonl", "metadata.csv", "captions.jsonl", "captions.csv")
_METADATA_SUFFIXES = (".jsonl", ".csv")
_SOUND_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")
_JSON = ".json"

_NumberedRow = tuple[int, dict[str, Any] | str]
"""Number of the line (in json: of the row), and its cells by column, or the reason why they cannot be read."""


class FolderSource(RowSource):
    """Samples of a folder, in the order of its tables, or of the file names if it has none.

    Args:
        path: the folder, or the one table in it that holds the rows; for the other arguments see `RowSource`.

    Raises:
        DataError: the folder is missing or holds no samples, or a table lacks columns.
    """

    only_paths = True

    def __init__(
        self,
        path: Path | str,
        config: DatasetConfig,
        reading: Reading = IMAGES_AND_CAPTIONS,
        shrink_to_px: int | None = None,
    ) -> None:
        path = expanded(str(path))
        folder = path.parent if path.is_file() else path
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder or table; name a folder of images and captions")
        super().__init__(folder, config, reading, shrink_to_px)
        tables = [path] if path.is_file() else _tables(folder, reading)
        if not tables and config.image_root is not None:
            raise DataError(f"{folder}: no table names images here; leave dataset.image_root out, or name the table")
        rows = chain.from_iterable(map(self._rows_of_table, tables)) if tables else self._rows_of_sidecars()
        self._rows = _unique(rows)
        if not self._rows:
            raise DataError(f"{folder}: no images; name a folder with images and {METADATA_NAMES[0]} or .txt captions")

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, index: int) -> Row:
        return self._rows[index]

    def scan(self, columns: Sequence[str]) -> Iterator[Row]:
        return iter(self._rows)

    def _rows_of_table(self, file: Path) -> list[Row]:
        found: set[str] = set()
        rows = []
        for number, values in _read_table(file):
            id = f"{file.relative_to(self._root)}:{number}"
            if isinstance(values, str):
                rows.append(Row(id, {}, file.parent, fault=values))
            else:
                found |= values.keys()
                rows.append(self._row(id, values, file.parent))
        if found and (fault := self.missing(found)):
            raise DataError(f"{file}: {fault}")
        return rows

    def _row(self, id: str, values: dict[str, Any], folder: Path) -> Row:
        """A row with the name of its image, or else of its sound, or else `id`."""
        names = (*self.columns, *IMAGE_NAMES)
        row = Row(id, {name: values[name] for name in names if name in values}, folder)
        try:
            image, sound = self.files(row.cells)
            if file := image or sound:
                base = self.image_folder(folder) if image else folder
                path, root = base / str(file), self.image_folder(self._root) if image else self._root
                name = path.relative_to(root) if path.is_relative_to(root) else path
                row = replace(row, id=str(name))
            self.read_texts(row.cells)
        except ValueError as error:
            named = map(row.cells.get, (self._config.image_column, *IMAGE_NAMES, self._config.audio_column))
            addresses = (name for name in named if isinstance(name, str) and is_web_address(name))
            return replace(row, id=next(addresses, row.id), fault=str(error))
        return row

    def _rows_of_sidecars(self) -> Iterator[Row]:
        files = list(_files(self._root))
        images = [file for file in files if Image.registered_extensions().get(file.suffix.lower()) in FORMATS]
        if not self._reading.sounds:
            yield from (self._row_of_sidecar(image, image, None) for image in images)
            return
        sounds = {file.with_suffix(""): file for file in files if file.suffix.lower() in _SOUND_SUFFIXES}
        beside = {image.with_suffix("") for image in images}
        for file in sorted([*images, *(sound for name, sound in sounds.items() if name not in beside)]):
            image = None if file.suffix.lower() in _SOUND_SUFFIXES else file
            yield self._row_of_sidecar(file, image, sounds.get(file.with_suffix("")))

    def _row_of_sidecar(self, file: Path, image: Path | None, sound: Path | None) -> Row:
        text = file.with_suffix(".txt")
        captions, fault = [], None
        try:
            captions = text.read_text("utf-8-sig", "surrogateescape").splitlines()
            if not self._reading.sounds:
                read_captions(captions)
        except FileNotFoundError:
            fault = None if self._reading.sounds else f"no caption file {text.name} beside the image"
        except ValueError as error:
            fault = str(error)
        files = ((self._config.image_column, image), (self._config.audio_column, sound))
        cells = {self._config.caption_column: captions, **{column: path.name for column, path in files if path}}
        return Row(str(file.relative_to(self._root)), cells, file.parent, fault)


def _files(folder: Path) -> Iterator[Path]:
    """All files in the folder and below it, sorted by name, without hidden ones."""
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(parent, name) for name in sorted(names) if not name.startswith("."))


def _tables(folder: Path, reading: Reading) -> list[Path]:
    named = [path for path in _files(folder) if path.name in METADATA_NAMES]
    if named:
        return named
    files = sorted(path for path in folder.iterdir() if path.is_file())
    others = [path for path in files if path.suffix.lower() in _METADATA_SUFFIXES]
    if reading.dialogues and not others:
        others = [path for path in files if path.suffix.lower() == _JSON and _holds_a_list(path)]
    if len(others) > 1:
        names = ", ".join(path.name for path in others)
        raise DataError(f"{folder}: several files could hold the captions ({names}); call one {METADATA_NAMES[0]}")
    return others


def _holds_a_list(file: Path) -> bool:
    """True for JSON that begins with a list; other files, such as `dataset_infos.json`, only lie beside the data."""
    with file.open("rb") as data:
        return data.read(1024).removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"[")


def _unique(rows: Iterable[Row]) -> list[Row]:
    """The rows with distinct names: of rows that share an image, the second and later ones are numbered."""
    seen: Counter[str] = Counter()
    unique = []
    for row in rows:
        seen[row.id] += 1
        id = row.id if seen[row.id] == 1 else f"{row.id}#{seen[row.id]}"
        unique.append(replace(row, id=printable(id)))
    return unique


def _read_table(file: Path) -> Iterator[_NumberedRow]:
    return {".csv": _read_csv, _JSON: _read_json}.get(file.suffix.lower(), _read_jsonl)(file)


def _read_jsonl(file: Path) -> Iterator[_NumberedRow]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                values = json.loads(line.decode("utf-8-sig"))
            except ValueError as error:
                yield number, f"not a line of JSON ({error})"
                continue
            yield number, values if isinstance(values, dict) else "not a JSON object"


def _read_json(file: Path) -> Iterator[_NumberedRow]:
    try:
        rows = json.loads(file.read_bytes().decode("utf-8-sig"))
    except ValueError as error:
        raise DataError(f"{file}: is no JSON ({error}); fix the file") from error
    if not isinstance(rows, list):
        raise DataError(f"{file}: is no list of rows; write one JSON object per image into a list")
    for number, values in enumerate(rows, start=1):
        yield number, values if isinstance(values, dict) else "not a JSON object"


def _read_csv(file: Path) -> Iterator[_NumberedRow]:
    csv.field_size_limit(1 << 24)  # captions of a model can be longer than the standard library expects
    with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
        reader = csv.DictReader(lines)
        try:
            for values in reader:
                if None in values or None in values.values():
                    yield reader.line_num, "the row does not have as many cells as the header"
                else:
                    yield reader.line_num, {key: _list_or_text(cell) for key, cell in values.items()}
        except csv.Error as error:
            raise DataError(f"{file}: line {reader.line_num} is no csv ({error}); fix the file") from error


def _list_or_text(cell: str) -> Any:
    """A cell that is a JSON list becomes a list."""
    with suppress(ValueError):
        return json.loads(cell) if cell.startswith("[") else cell
    return cell
