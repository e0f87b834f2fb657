"""A folder of images (and sounds) with captions beside them.

Where captions are found, in this order:

1. Every `metadata.jsonl`, `metadata.csv`, `captions.jsonl` and `captions.csv` in the folder or below it: one row per
   sample, with the image's path (relative to the file that names it) and its caption.
2. Without such a file: one other `*.jsonl` or `*.csv` at the top of the folder. Any table can be named itself, in place
   of its folder.
3. Without any: every image in the folder or below it, its captions in a text file of the same name (`cat.jpg`,
   `cat.txt`), one caption per line.

The columns are those of the config; the image's column may also be called `file_name`, as Hugging Face calls it.
A caption is a string or a list of strings (in csv: a JSON list).

Where questions are asked for, a row holds them in one of the layouts of `impresa.data.sources.dialogues`, and in place
of 2 a single `*.json` file that is a list of rows will do too. A row whose only text is a caption is asked for that.

Where sound is read, a row may name a sound file too, and `cat.wav` (flac, ogg, mp3) lies beside `cat.jpg`. Then a
sample needs only two of image, caption and sound: the cells of the others are empty, or the files are not there.
"""

from __future__ import annotations

import codecs
import csv
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from PIL import Image

from impresa.config.experiment import DatasetConfig
from impresa.data.audio import Clip, decode_audio
from impresa.data.dialogue import Dialogue, dialogues_of_captions
from impresa.data.images import decode_image
from impresa.data.sample import Sample
from impresa.data.sources.base import BadSample
from impresa.data.sources.columns import (
    Wanted,
    is_web_address,
    read_captions,
    read_label,
    read_optional_captions,
)
from impresa.data.sources.dialogues import NO_DIALOGUE, missing_columns, read_dialogues
from impresa.data.text import printable
from impresa.errors import DataError

METADATA_NAMES = ("metadata.jsonl", "metadata.csv", "captions.jsonl", "captions.csv")
_METADATA_SUFFIXES = (".jsonl", ".csv")
_JSON = ".json"
_FILE_NAME_COLUMN = "file_name"
_SOUND_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")


@dataclass(frozen=True)
class _Row:
    """One sample, before its image and its sound are read."""

    id: str
    image: Path | None
    captions: tuple[str, ...] = ()
    label: str | None = None
    fault: str | None = None
    """Why the row is unusable, whatever its image."""
    audio: Path | None = None
    dialogues: tuple[Dialogue, ...] = ()


class FolderSource:
    """Samples of a folder, in the order of the metadata, or of the file names where there is none."""

    def __init__(
        self,
        folder: Path,
        config: DatasetConfig,
        *,
        table: Path | None = None,
        shrink_to_px: int | None = None,
        audio_seconds: float | None = None,
        dialogues: bool = False,
    ) -> None:
        """
        Args:
            folder: the folder.
            config: its columns are used.
            table: the one file that holds the rows; None looks for it, or them.
            shrink_to_px: side to which images will be shrunk, see `decode_image`; None decodes them as they are.
            audio_seconds: read sounds too, each up to so many seconds; None reads none.
            dialogues: read questions and answers too; then a sample needs them, and no caption.

        Raises:
            DataError: the folder is missing, holds no samples, or its metadata lacks the columns.
        """
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder; name a folder of images and captions")
        self._shrink_to_px = shrink_to_px
        self._audio_seconds = audio_seconds
        wanted = Wanted(sound=audio_seconds is not None, dialogues=dialogues)
        metadata = [table] if table else _metadata_files(folder, wanted)
        rows = _rows_of_metadata(folder, metadata, config, wanted) if metadata else _rows_of_sidecars(folder, wanted)
        self._folder = folder
        self._rows = _unique(rows)
        if not self._rows:
            raise DataError(f"{folder}: no images; name a folder with images and {METADATA_NAMES[0]} or .txt captions")

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Sample:
        row = self._rows[index]
        if row.fault:
            raise BadSample(row.id, row.fault)
        try:
            image, audio = self._read_image(row), self._read_audio(row)
        except ValueError as error:
            raise BadSample(row.id, str(error)) from error
        return Sample(
            id=row.id, image=image, audio=audio, captions=row.captions, label=row.label, dialogues=row.dialogues
        )

    def captions(self) -> Iterator[str]:
        return chain.from_iterable(self.captions_by_sample())

    def captions_by_sample(self) -> Iterator[tuple[str, ...]]:
        return (row.captions for row in self._rows)

    def dialogues(self) -> Iterator[Dialogue]:
        return chain.from_iterable(self.dialogues_by_sample())

    def dialogues_by_sample(self) -> Iterator[tuple[Dialogue, ...]]:
        return (row.dialogues for row in self._rows)

    def blocks(self) -> None:
        return None

    def image_keys(self) -> Iterator[str]:
        files = ((row, row.image or row.audio) for row in self._rows)
        return (row.id if file is None else os.path.relpath(file, self._folder) for row, file in files)

    def _read_image(self, row: _Row) -> Image.Image | None:
        if row.image is None:
            return None
        try:
            return decode_image(row.image.read_bytes(), self._shrink_to_px)
        except OSError as error:
            raise BadSample(row.id, f"the image cannot be read ({error.strerror or error})") from error

    def _read_audio(self, row: _Row) -> Clip | None:
        if row.audio is None:
            return None
        try:
            return decode_audio(row.audio, self._audio_seconds)
        except ValueError as error:
            raise BadSample(row.id, f"the sound {error}") from error


def _files(folder: Path) -> Iterator[Path]:
    """All files in the folder and below it in order of their names, without hidden ones."""
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(parent, name) for name in sorted(names) if not name.startswith("."))


def _metadata_files(folder: Path, wanted: Wanted) -> list[Path]:
    named = [path for path in _files(folder) if path.name in METADATA_NAMES]
    if named:
        return named
    files = sorted(path for path in folder.iterdir() if path.is_file())
    others = [path for path in files if path.suffix.lower() in _METADATA_SUFFIXES]
    if wanted.dialogues and not others:
        others = [path for path in files if path.suffix.lower() == _JSON and _holds_a_list(path)]
    if len(others) > 1:
        names = ", ".join(path.name for path in others)
        raise DataError(f"{folder}: several files could hold the captions ({names}); call one {METADATA_NAMES[0]}")
    return others


def _holds_a_list(file: Path) -> bool:
    """Whether a JSON file begins like a list; others, such as `dataset_infos.json`, only lie beside the data."""
    with file.open("rb") as data:
        return data.read(1024).removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"[")


def _rows_of_metadata(folder: Path, files: list[Path], config: DatasetConfig, wanted: Wanted) -> Iterator[_Row]:
    for file in files:
        read = {".csv": _read_csv, _JSON: _read_json}.get(file.suffix.lower(), _read_jsonl)
        columns: set[str] = set()
        rows = []
        for number, values in read(file):
            id = f"{file.relative_to(folder)}:{number}"
            if isinstance(values, str):
                rows.append(_Row(id, None, fault=values))
                continue
            columns |= values.keys()
            rows.append(_row_of_values(folder, file, id, values, config, wanted=wanted))
        if columns:
            _check_columns(file, columns, config, wanted)
        yield from rows


def _row_of_values(
    folder: Path, file: Path, id: str, values: dict[str, Any], config: DatasetConfig, *, wanted: Wanted
) -> _Row:
    cells = {"image": values.get(config.image_column) or values.get(_FILE_NAME_COLUMN)}
    if wanted.sound:
        cells["sound"] = values.get(config.audio_column)
    for what, cell in cells.items():
        may_lack = wanted.sound and cell in (None, "")
        if not may_lack and (not isinstance(cell, str) or not cell.strip()):
            return _Row(id, None, fault=f"no {what} path")
        if cell and is_web_address(cell):
            return _Row(cell, None, fault=f"the {what} is an address on the web; download it first")
    image, audio = (file.parent / name if (name := cells.get(what)) else None for what in ("image", "sound"))
    if named := image or audio:
        id = str(named.relative_to(folder)) if named.is_relative_to(folder) else str(named)
    may_lack_captions = wanted.sound or wanted.dialogues
    try:
        captions = (read_optional_captions if may_lack_captions else read_captions)(values.get(config.caption_column))
        dialogues = read_dialogues(values, config) if wanted.dialogues else ()
        label = read_label(values.get(config.label_column))
    except ValueError as error:
        return _Row(id, image, fault=str(error), audio=audio)
    fault = wanted.lack(image=image is not None, audio=audio is not None, captions=bool(captions))
    return _Row(id, image, captions, label, fault, audio, dialogues)


def _check_columns(file: Path, columns: set[str], config: DatasetConfig, wanted: Wanted) -> None:
    if wanted.dialogues and (fault := missing_columns(columns, config)):
        raise DataError(f"{file}: {fault}")
    if wanted.sound:
        _check_columns_with_sound(file, columns, config, wanted)
        return
    found = ", ".join(sorted(columns))
    if not columns & {config.image_column, _FILE_NAME_COLUMN}:
        fault = f"no column {config.image_column!r} for the image (there are: {found})"
        raise DataError(f"{file}: {fault}; set dataset.image_column")
    if not wanted.dialogues and config.caption_column not in columns:
        fault = f"no column {config.caption_column!r} for the caption (there are: {found})"
        raise DataError(f"{file}: {fault}; set dataset.caption_column")


def _check_columns_with_sound(file: Path, columns: set[str], config: DatasetConfig, wanted: Wanted) -> None:
    found = ", ".join(sorted(columns))
    if config.audio_column not in columns:
        fault = f"no column {config.audio_column!r} for the sound (there are: {found})"
        raise DataError(f"{file}: {fault}; set dataset.audio_column, or leave the audio_encoder out")
    if not wanted.dialogues and not columns & {config.image_column, _FILE_NAME_COLUMN, config.caption_column}:
        fault = f"no column for the image or the caption beside the sound (there are: {found})"
        raise DataError(f"{file}: {fault}; set dataset.image_column or dataset.caption_column")


def _read_jsonl(file: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """(line number, row or what is wrong with it); empty lines are passed over."""
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


def _read_json(file: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """(number of the row, row or what is wrong with it) of a file that is one list."""
    try:
        rows = json.loads(file.read_bytes().decode("utf-8-sig"))
    except ValueError as error:
        raise DataError(f"{file}: is no JSON ({error}); mend the file") from error
    if not isinstance(rows, list):
        raise DataError(f"{file}: is no list of rows; write one JSON object per image into a list")
    for number, values in enumerate(rows, start=1):
        yield number, values if isinstance(values, dict) else "not a JSON object"


def _read_csv(file: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """(line number, row or what is wrong with it); a cell that is a JSON list becomes a list."""
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
            raise DataError(f"{file}: line {reader.line_num} is no csv ({error}); mend the file") from error


def _list_or_text(cell: str) -> Any:
    if cell.startswith("["):
        try:
            return json.loads(cell)
        except ValueError:
            return cell
    return cell


def _rows_of_sidecars(folder: Path, wanted: Wanted) -> Iterator[_Row]:
    formats = Image.registered_extensions()
    files = list(_files(folder))
    images = [file for file in files if file.suffix.lower() in formats]
    if not wanted.sound:
        yield from (_asked_for_captions(_row_of_sidecar(folder, image), wanted) for image in images)
        return
    sounds = {file.with_suffix(""): file for file in files if file.suffix.lower() in _SOUND_SUFFIXES}
    beside = {image.with_suffix("") for image in images}
    for file in sorted([*images, *(sound for name, sound in sounds.items() if name not in beside)]):
        image = None if file.suffix.lower() in _SOUND_SUFFIXES else file
        row = _row_with_sound(folder, file, image, sounds.get(file.with_suffix("")), wanted)
        yield _asked_for_captions(row, wanted)


def _row_of_sidecar(folder: Path, image: Path) -> _Row:
    id, text = str(image.relative_to(folder)), image.with_suffix(".txt")
    try:
        return _Row(id, image, read_captions(_lines(text)))
    except FileNotFoundError:
        return _Row(id, image, fault=f"no caption file {text.name} beside the image")
    except ValueError as error:
        return _Row(id, image, fault=str(error))


def _row_with_sound(folder: Path, file: Path, image: Path | None, audio: Path | None, wanted: Wanted) -> _Row:
    id, text = str(file.relative_to(folder)), file.with_suffix(".txt")
    try:
        captions = read_optional_captions(_lines(text)) if text.exists() else ()
    except ValueError as error:
        return _Row(id, image, fault=str(error), audio=audio)
    fault = wanted.lack(image=image is not None, audio=audio is not None, captions=bool(captions))
    return _Row(id, image, captions, fault=fault, audio=audio)


def _asked_for_captions(row: _Row, wanted: Wanted) -> _Row:
    """The row with its captions as answers, if questions are wanted."""
    if not wanted.dialogues or row.fault:
        return row
    return replace(row, dialogues=dialogues_of_captions(row.captions), fault=None if row.captions else NO_DIALOGUE)


def _lines(text: Path) -> list[str]:
    return text.read_text("utf-8-sig", "surrogateescape").splitlines()


def _unique(rows: Iterable[_Row]) -> list[_Row]:
    """Number the rows that share an image from the second on, so that each sample has a name of its own."""
    seen: Counter[str] = Counter()
    unique = []
    for row in rows:
        seen[row.id] += 1
        id = row.id if seen[row.id] == 1 else f"{row.id}#{seen[row.id]}"
        unique.append(replace(row, id=printable(id)))
    return unique
