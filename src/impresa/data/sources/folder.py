"""A folder of images (and sounds) with captions beside them. Captions are found in this order:

1. Every table called `metadata` or `captions` (`.jsonl`, `.csv`, `.tsv`) in the folder or below it: one row per sample,
   with the image's path (relative to the file that names it) and its caption.
2. Without such a file: one other table at the top of the folder. Any table can be named itself, in place of its folder.
   Where questions are read, a single `*.json` file that is a list of rows will do too. A `*.txt` that is named itself
   has a header, or where texts alone are embedded one on each line.
3. Without any: every image in the folder or below it, its captions in a text file of the same name (`cat.jpg`,
   `cat.txt`), one caption per line, or in a JSON object. Where sounds are read, `cat.wav` (flac, ogg, mp3) lies beside
   `cat.jpg`. If no image has a caption, the names of folders are labels, which is enough to evaluate.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from impresa.config.dataset import DatasetConfig
from impresa.config.paths import expanded
from impresa.config.shard_names import is_address
from impresa.data.disk import folders_below, paths_of, read_regular
from impresa.data.image_files import image_suffixes
from impresa.data.sources.base import IMAGES_AND_CAPTIONS, Reading
from impresa.data.sources.dialogues import typed_answers
from impresa.data.sources.rows import IMAGE_NAMES, Row, RowSource
from impresa.data.sources.tables import (
    CSV_SUFFIXES,
    JSON,
    JSON_LINES,
    TOKEN,
    decoded,
    holds_a_list,
    may_be_lines,
    open_table,
)
from impresa.errors import DataError
from impresa.foreign_text import printable
from impresa.json_files import parse_json

Folders = Sequence[tuple[Path, list[str]]]
"""Folders and the names of their files, as `folders_below` gives them."""
METADATA_NAMES = tuple(f"{name}{end}" for name in ("metadata", "captions") for end in (JSON_LINES, *CSV_SUFFIXES))
_FLICKR = "captions.txt"
"""The csv file of Flickr8k's captions; another file of this name may be the caption of `captions.jpg`."""
_TABLE_ENDS = (JSON_LINES, *CSV_SUFFIXES, *TOKEN)
SOUND_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")
_CAPTION_SUFFIXES = (".txt", ".json")
"""Those of the files beside an image that may hold its captions, the first that is there."""


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
        folders = [] if path.is_file() else folders_below(folder)
        tables = [path] if path.is_file() else self._tables(folders)
        if not tables and config.image_root is not None:
            raise DataError(f"{folder}: no table names images here; leave dataset.image_root out, or name the table")
        if not tables and self._reading.negatives:
            fault = f"{folder}: no table is here, and files beside images hold no hard negatives"
            raise DataError(f"{fault}; write {METADATA_NAMES[0]}, or leave dataset.negative_column out")
        self._rows = _unique(
            chain.from_iterable(map(self._rows_of_table, tables)) if tables else self._sidecars(folders)
        )
        if tables and not self._rows:
            raise DataError(f"{tables[0]}: no rows; write one for each image, or move the table out of the way")
        if not self._rows:
            raise DataError(f"{folder}: no images; name a folder with images and {METADATA_NAMES[0]} or .txt captions")

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, index: int) -> Row:
        return self._rows[index]

    def scan(self, columns: Sequence[str]) -> Iterator[Row]:
        return iter(self._rows)

    def other_columns(self) -> tuple[str, ...]:
        found = dict.fromkeys(chain.from_iterable(row.cells for row in self._rows))
        return tuple(name for name in found if name not in (*self.columns, *IMAGE_NAMES))

    def _tables(self, folders: Folders) -> list[Path]:
        named = [
            file
            for file in paths_of(folders, (*METADATA_NAMES, _FLICKR).__contains__)
            if file.name != _FLICKR or self._fits(file)
        ]
        if named:
            return named
        others = tables_at_the_top(self._root, folders)
        if self._reading.dialogues and not others:
            others = [file for file in _at_the_top(self._root, folders, (JSON,)) if holds_a_list(file)]
        if len(others) > 1:
            names = ", ".join(printable(file.name) for file in others)
            fault = f"several files could hold the captions ({names}); call one {METADATA_NAMES[0]}"
            raise DataError(f"{self._root}: {fault}")
        return others

    def _fits(self, file: Path) -> bool:
        """True for a table that has the columns."""
        with suppress(DataError), open_table(file, self._config, {*self.columns, *IMAGE_NAMES}) as table:
            return self.missing(set(table.columns)) is None
        return False

    def _rows_of_table(self, file: Path) -> list[Row]:
        rows = []
        as_lines = self._reading.parts == ("text",) and may_be_lines(file) and not self._fits(file)
        with open_table(file, self._config, {*self.columns, *IMAGE_NAMES}, as_lines=as_lines) as table:
            found = set(table.columns)
            for number, values in table.rows:
                id = f"{file.relative_to(self._root)}:{number}"
                if isinstance(values, str):
                    rows.append(Row(id, {}, file.parent, fault=values))
                else:
                    found |= values.keys()
                    cells = typed_answers(values, self._config) if table.columns else values
                    rows.append(self._row(id, cells, file.parent))
        if found and (fault := self.missing(found)):
            raise DataError(f"{file}: {fault}{table.note}")
        return rows

    def _row(self, id: str, values: dict[str, Any], folder: Path) -> Row:
        """A row with the names of its images, or else of its sound, or else `id`."""
        names = values if self._reading.others else (*self.columns, *IMAGE_NAMES)
        row = Row(id, {name: values[name] for name in names if name in values}, folder)
        try:
            images, sound = self.files(row)
        except ValueError as error:
            named = map(row.cells.get, (self._config.image_column, *IMAGE_NAMES, self._config.audio_column))
            addresses = (name for name in named if isinstance(name, str) and is_address(name))
            return replace(row, id=next(addresses, row.id), fault=str(error))
        files = [str(file) for file in images or (sound,) if file]
        inner = [self.name_of(file, "image" if images else "sound") or file for file in files]
        return replace(row, id="+".join(inner)) if inner else row

    def _sidecars(self, folders: Folders) -> list[Row]:
        """One row for each image, and for each sound without one; folders are classes if no image has a caption."""
        formats, heard = image_suffixes(), SOUND_SUFFIXES if self._reading.sounds else ()
        found = [
            (here, name, beside) for here, names in folders for name, beside in _with_its_files(names, formats, heard)
        ]
        if heard:
            found.sort(key=lambda item: (*item[0].parts, item[1]))
        inner = {here: self.name_of(os.path.abspath(here)) for here, _ in folders}
        rows = [self._row_of_sidecar(here, inner[here], name, beside) for here, name, beside in found]
        captions, sounds = self._config.caption_column, self._config.audio_column
        if not any(row.fault or row.cells.keys() & {captions, sounds} for row in rows):
            return self._class_folders(rows)
        if heard or self._reading.parts:
            return rows
        return [row if row.fault or captions in row.cells else _without_caption(row) for row in rows]

    def _row_of_sidecar(self, folder: Path, inner: str | None, name: str, beside: Mapping[str, str]) -> Row:
        """The row of an image or a sound, with the files beside it by their suffix; `inner` names the folder."""
        config = self._config
        sound = _first(beside, SOUND_SUFFIXES)
        is_sound = sound == name
        cells: dict[str, Any] = {} if is_sound else {config.image_column: name}
        if sound:
            cells[config.audio_column] = sound
        fault = None
        if text := _first(beside, _CAPTION_SUFFIXES):
            try:
                captions = self._captions_of(folder / text)
            except OSError as error:
                fault = f"its captions cannot be read ({text}: {error.strerror or error})"
            except ValueError as error:
                fault = f"its captions cannot be read ({text}: {error})"
            else:
                cells |= {} if captions is None else {config.caption_column: captions}
        id = os.path.join(str(folder) if inner is None else "" if inner == "." else inner, name)
        return Row(id, cells, folder, fault)

    def _captions_of(self, file: Path) -> Any:
        """The lines of a text file; of a JSON object, as img2dataset writes it, its caption, or None without one."""
        text = decoded(read_regular(file, self._max_bytes))
        if file.suffix.lower() != JSON:
            return text.splitlines()
        values = parse_json(text)
        return values.get(self._config.caption_column) if isinstance(values, dict) else None

    def _class_folders(self, rows: list[Row]) -> list[Row]:
        """The rows with the names of their folders as labels."""
        config = self._config
        are_classes = any(row.folder != self._root for row in rows)
        needs_none = self._reading.labels or config.caption_column == config.label_column
        if rows and not (self._reading.parts or (are_classes and needs_none)):
            fault = f"no image has a caption: there is neither {METADATA_NAMES[0]} nor a text file of an image's name"
            raise DataError(f"{self._root}: {fault}; {self.only_labels if are_classes else 'write one of them'}")
        labels = {folder: folder.name for folder in {row.folder for row in rows} if folder != self._root}
        return [
            Row(row.id, {**row.cells, config.label_column: labels[row.folder]}, row.folder)
            if row.folder in labels
            else row
            for row in rows
        ]


def tables_at_the_top(folder: Path, folders: Folders) -> list[Path]:
    """The tables of any name that lie in the folder itself, the first of `folders`."""
    return _at_the_top(folder, folders, _TABLE_ENDS)


def _at_the_top(folder: Path, folders: Folders, ends: tuple[str, ...]) -> list[Path]:
    top = [(here, names) for here, names in folders if here == folder]
    return list(paths_of(top, lambda name: name.lower().endswith(ends)))


def _with_its_files(
    names: Sequence[str], formats: Container[str], heard: Sequence[str]
) -> Iterator[tuple[str, Mapping[str, str]]]:
    """Each image of a folder, then each sound without one, and by suffix the files of its name that belong to it."""
    images: list[tuple[str, str]] = []
    beside: dict[str, dict[str, str]] = {}
    for name in names:
        stem, suffix = os.path.splitext(name)
        if (suffix := suffix.lower()) in formats:
            images.append((name, stem))
        elif suffix in _CAPTION_SUFFIXES or suffix in heard:
            beside.setdefault(stem, {})[suffix] = name
    for name, stem in images:
        yield name, beside.get(stem, {})
    with_image = {stem for _, stem in images}
    for stem, found in beside.items() if heard else ():
        if stem not in with_image and (sound := _first(found, heard)):
            yield sound, found


def _first(files: Mapping[str, str], suffixes: Iterable[str]) -> str | None:
    return next((files[suffix] for suffix in suffixes if suffix in files), None)


def _without_caption(row: Row) -> Row:
    return replace(row, fault=f"no caption file beside the image ({Path(row.id).stem}.txt)")


def _unique(rows: Iterable[Row]) -> list[Row]:
    """The rows with distinct names: of rows that share an image, the second and later ones are numbered."""
    seen: Counter[str] = Counter()
    unique = []
    for row in rows:
        seen[row.id] += 1
        id = row.id if seen[row.id] == 1 else f"{row.id}#{seen[row.id]}"
        unique.append(row if (id := printable(id)) == row.id else replace(row, id=id))
    return unique
