"""Rows of a table, whatever files hold it, and the one place that makes samples of them.

A format (a folder, parquet, ...) is a subclass of `RowSource` that yields rows; `Columns` has every rule of what the
columns of a row mean, which of them a table needs and which cells may be empty.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from typing import Any, Literal, TypeVar

from PIL import Image

from impresa.config.experiment import DatasetConfig
from impresa.data.audio import Clip, decode_audio
from impresa.data.batch import Sample
from impresa.data.dialogue import Dialogue
from impresa.data.images import decode_image
from impresa.data.sources.base import BadSample, Blocks, Reading
from impresa.data.sources.cells import read_captions, read_label, read_optional_captions
from impresa.data.sources.dialogues import dialogue_columns, missing_columns, read_dialogues

T = TypeVar("T")

FILE_NAME = "file_name"
"""A second name of the image's column: that of Hugging Face's image folders."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a table, before its image and its sound are read."""

    id: str
    """Name of the sample, unique in its source."""
    cells: Mapping[str, Any]
    """Values by column. An image or a sound is bytes, a path, or Hugging Face's struct of `bytes` and `path`."""
    folder: Path
    """Folder that paths in the cells are relative to."""
    fault: str | None = None
    """Reason why the row cannot be used, if it is known without reading its files."""


@dataclass(frozen=True)
class Columns:
    """The columns of a data set, with the names that its config gives them."""

    config: DatasetConfig
    reading: Reading
    only_paths: bool = False
    """Images and sounds are named by paths, and never held as bytes."""

    @property
    def names(self) -> tuple[str, ...]:
        """All columns that are read, if they are there; `FILE_NAME` may stand in for that of the image."""
        config = self.config
        sound = (config.audio_column,) if self.reading.sounds else ()
        asked = dialogue_columns(config) if self.reading.dialogues else ()
        names = (config.image_column, config.caption_column, config.label_column, *sound, *asked)
        return tuple(dict.fromkeys(names))

    def missing(self, found: Set[str]) -> str | None:
        """The column that a table with the columns `found` lacks, with the fix; None if it has all."""
        config, reading = self.config, self.reading
        has_image, has_caption = bool(found & {config.image_column, FILE_NAME}), config.caption_column in found
        lack = None
        if reading.dialogues and (fault := missing_columns(found, config)):
            return fault
        if reading.sounds and config.audio_column not in found:
            fix = "dataset.audio_column, or leave the audio_encoder out"
            lack = f"no column {config.audio_column!r} for the sound", fix
        elif reading.sounds and not (has_image or has_caption or reading.dialogues):
            fix = "dataset.image_column or dataset.caption_column"
            lack = "no column for the image or the caption beside the sound", fix
        elif not (reading.sounds or has_image):
            lack = f"no column {config.image_column!r}", "dataset.image_column"
        elif not (reading.sounds or has_caption or reading.dialogues):
            lack = f"no column {config.caption_column!r}", "dataset.caption_column"
        return lack and f"{lack[0]} (there are: {', '.join(sorted(found))}); set {lack[1]}"

    def files(self, cells: Mapping[str, Any]) -> tuple[bytes | str | None, bytes | str | None]:
        """Image and sound of a row, each as bytes or as a path; None for what may be, and is, missing.

        Raises:
            ValueError: a needed file is missing or lies on the web; the message is the reason alone.
        """
        image = self._file(cells.get(self.config.image_column) or cells.get(FILE_NAME), "image")
        return image, self._file(cells.get(self.config.audio_column), "sound") if self.reading.sounds else None

    def captions(self, cells: Mapping[str, Any]) -> tuple[str, ...]:
        """The captions of a row; there may be none where sounds or dialogues are read.

        Raises:
            ValueError: the caption is missing or no text; the message is the reason alone.
        """
        may_lack = self.reading.sounds or self.reading.dialogues
        return (read_optional_captions if may_lack else read_captions)(cells.get(self.config.caption_column))

    def dialogues(self, cells: Mapping[str, Any]) -> tuple[Dialogue, ...]:
        """The questions and answers of a row, if they are read.

        Raises:
            ValueError: the row has none, or malformed ones; the message is the reason alone.
        """
        return read_dialogues(cells, self.config) if self.reading.dialogues else ()

    def sample(self, row: Row, shrink_to_px: int | None = None) -> Sample:
        """The sample of a row, its image and its sound decoded.

        Args:
            row: the row.
            shrink_to_px: side to which the image will be shrunk, see `decode_image`; None decodes it as it is.

        Raises:
            BadSample: the row cannot be used.
        """
        try:
            if row.fault:
                raise ValueError(row.fault)
            image, sound = self.files(row.cells)
            captions, dialogues = self.captions(row.cells), self.dialogues(row.cells)
            label = read_label(row.cells.get(self.config.label_column))
            num_modalities = (image is not None) + (sound is not None) + bool(captions)
            if self.reading.dialogues and image is sound is None:
                raise ValueError("has neither image nor sound to ask about")
            if not self.reading.dialogues and num_modalities < 2:
                raise ValueError("has only one of image, caption and sound")
            return Sample(
                id=row.id,
                image=None if image is None else _image(image, row.folder, shrink_to_px),
                audio=None if sound is None else _sound(sound, row.folder, self.reading.audio_seconds),
                captions=captions,
                label=label,
                dialogues=dialogues,
            )
        except ValueError as error:
            raise BadSample(row.id, str(error)) from error

    def key(self, row: Row, root: Path) -> str:
        """A name of a row's image, or else of its sound: a hash of its bytes, or its path as seen from `root`."""
        try:
            image, sound = self.files(row.cells)
        except ValueError:
            return row.id
        file = sound if image is None else image
        if file is None:
            return row.id
        if isinstance(file, bytes):
            return blake2b(file, digest_size=16).hexdigest()
        return os.path.relpath(row.folder / file, root)

    def _file(self, cell: Any, what: Literal["image", "sound"]) -> bytes | str | None:
        if isinstance(cell, dict) and not self.only_paths:
            cell = cell.get("bytes") or cell.get("path")
        if self.reading.sounds and cell in (None, "", b""):
            return None
        if self.only_paths and not (isinstance(cell, str) and cell.strip()):
            raise ValueError(f"no {what} path")
        if not cell:
            raise ValueError(f"there is no {what}")
        if isinstance(cell, str) and is_web_address(cell):
            raise ValueError(f"the {what} is an address on the web; download it first")
        return cell


class RowSource(ABC):
    """Samples made of rows. A format says what its rows are: `__len__`, `row` and `scan`.

    Args:
        columns: what the cells mean, and which of them are read.
        root: folder of the data; keys of images are paths as seen from here.
        shrink_to_px: side to which images will be shrunk, see `decode_image`; None decodes them as they are.
    """

    def __init__(self, columns: Columns, root: Path, shrink_to_px: int | None) -> None:
        self._columns = columns
        self._root = root
        self._shrink_to_px = shrink_to_px

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def row(self, index: int) -> Row:
        """The row at `index`; what is wrong with it is its `fault`."""

    @abstractmethod
    def scan(self, columns: Sequence[str]) -> Iterator[Row]:
        """All rows in order, of each at least the cells of these columns, for a single pass."""

    def blocks(self) -> Blocks | None:
        """How rows lie together in storage; None where every order costs the same."""
        return None

    def __getitem__(self, index: int) -> Sample:
        return self._columns.sample(self.row(index), self._shrink_to_px)

    def captions(self) -> Iterator[str]:
        return chain.from_iterable(self.captions_by_sample())

    def captions_by_sample(self) -> Iterator[tuple[str, ...]]:
        """For each sample, in order, its captions, without decoding an image; none where they are unusable."""
        return self._texts((self._columns.config.caption_column,), self._columns.captions)

    def dialogues(self) -> Iterator[Dialogue]:
        return chain.from_iterable(self.dialogues_by_sample())

    def dialogues_by_sample(self) -> Iterator[tuple[Dialogue, ...]]:
        """The same for questions and answers; nothing at all where they are not read."""
        if not self._columns.reading.dialogues:
            return iter(())
        return self._texts(dialogue_columns(self._columns.config), self._columns.dialogues)

    def _texts(
        self, columns: Sequence[str], read: Callable[[Mapping[str, Any]], tuple[T, ...]]
    ) -> Iterator[tuple[T, ...]]:
        for row in self.scan(columns):
            try:
                yield () if row.fault else read(row.cells)
            except ValueError:
                yield ()

    def image_keys(self) -> Iterator[str]:
        """For each sample, in order, a name of its image, or of its sound where there is no image.

        Names of equal images are equal, and they are the same in every run. Images held as bytes are all read once.
        """
        sound = (self._columns.config.audio_column,) if self._columns.reading.sounds else ()
        columns = (self._columns.config.image_column, FILE_NAME, *sound)
        return (self._columns.key(row, self._root) for row in self.scan(columns))


def is_web_address(path: str) -> bool:
    """True for a URL: data are read from disk only."""
    return "://" in path


def _image(file: bytes | str, folder: Path, shrink_to_px: int | None) -> Image.Image:
    try:
        data = file if isinstance(file, bytes) else (folder / file).read_bytes()
    except OSError as error:
        raise ValueError(f"the image cannot be read ({error.strerror or error})") from error
    return decode_image(data, shrink_to_px)


def _sound(file: bytes | str, folder: Path, max_seconds: float | None) -> Clip:
    try:
        return decode_audio(file if isinstance(file, bytes) else folder / file, max_seconds)
    except ValueError as error:
        raise ValueError(f"the sound {error}") from error
