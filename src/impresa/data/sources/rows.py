"""Rows of a table in any format, the samples that are made of them, and their division by image.

A format (a folder, parquet, ...) is a subclass of `RowSource` that yields rows. `RowSource` has all rules about the
meaning of the columns, about those that a table needs, and about cells that may be empty.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from hashlib import blake2b
from itertools import chain, compress
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from impresa.config.experiment import DatasetConfig
from impresa.config.paths import expanded
from impresa.data.audio import Clip, decode_audio
from impresa.data.dialogue import Dialogue
from impresa.data.images import decode_image
from impresa.data.sample import Sample
from impresa.data.sources.base import BadSample, Blocks, Reading
from impresa.data.sources.dialogues import dialogue_columns, missing_columns, read_dialogues
from impresa.data.text import read_captions, read_label
from impresa.errors import DataError

T = TypeVar("T")
File = bytes | str
"""An image or a sound: its content, or its path."""

FILE_NAME = "file_name"
IMAGE_NAMES = (FILE_NAME, "images")
"""Other names of the image's column: that of Hugging Face's image folders, and that of lists of images."""
TEXT_ALONE, SEVERAL_IMAGES = "text alone", "several images"
"""The kinds of rows that are not read."""


class UnsupportedRow(ValueError):  # noqa: N818 - a state of the data, as `BadSample` is
    """A row that is not read because of its kind, though nothing is wrong with it; the message is the reason alone."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(f"{reason}; dataset.skip_unsupported_rows=true leaves such rows out")
        self.kind = kind


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
    """Reason why the row cannot be used, if it shows without reading its files."""


class RowSource(ABC):
    """Samples made of rows. A format has a constructor of `path` and the last three arguments, and yields its rows.

    Args:
        root: folder of the data; the names of images are paths relative to it.
        config: names of the columns.
        reading: the parts that are read beside images and captions.
        shrink_to_px: side to which images will be shrunk, see `decode_image`; None decodes them at full size.
    """

    only_paths: ClassVar[bool] = False
    """True for a format that names images and sounds by paths, and never holds them as bytes."""

    def __init__(self, root: Path, config: DatasetConfig, reading: Reading, shrink_to_px: int | None) -> None:
        self._root = root
        self._config = config
        self._reading = reading
        self._shrink_to_px = shrink_to_px
        self._image_root = None if config.image_root is None else expanded(config.image_root)
        if self._image_root is not None and not self._image_root.is_dir():
            raise DataError(f"dataset.image_root: {config.image_root} is no folder; name the one that holds the images")

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def row(self, index: int) -> Row:
        """The row at `index`, with its `fault` if it cannot be used."""

    @abstractmethod
    def scan(self, columns: Sequence[str]) -> Iterator[Row]:
        """All rows in order, with at least the cells of these columns, for a single pass."""

    def blocks(self) -> Blocks | None:
        return None

    def __getitem__(self, index: int) -> Sample:
        row = self.row(index)
        try:
            if row.fault:
                raise ValueError(row.fault)
            captions, dialogues, label = self.read_texts(row.cells)
            image, sound = self.files(row.cells)
            if not self._reading.dialogues and (image is not None) + (sound is not None) + bool(captions) < 2:
                raise ValueError("has only one of image, caption and sound")
            picture = (
                None
                if image is None
                else _image(image, self.image_folder(row.folder), self._shrink_to_px, self._config)
            )
            clip = None if sound is None else _sound(sound, row.folder, self._reading.audio_seconds)
            return Sample(row.id, picture, captions, label, clip, dialogues)
        except ValueError as error:
            raise BadSample(row.id, str(error)) from error

    def captions(self) -> Iterator[str]:
        return chain.from_iterable(self.captions_by_sample())

    def captions_by_sample(self) -> Iterator[tuple[str, ...]]:
        """The captions of each sample, in order, without decoding an image; none if they are unusable."""
        return self._by_sample((self._config.caption_column,), self._captions)

    def dialogues(self) -> Iterator[Dialogue]:
        return chain.from_iterable(self.dialogues_by_sample())

    def dialogues_by_sample(self) -> Iterator[tuple[Dialogue, ...]]:
        """The same for questions and answers; empty if they are not read."""
        columns = dialogue_columns(self._config)
        return self._by_sample(columns, self._dialogues) if self._reading.dialogues else iter(())

    def image_keys(self) -> Iterator[str]:
        """A name of each sample's image, in order, or of its sound if it has no image.

        Equal images have equal names, the same in every run: the division into training and validation data follows
        from them. Images held as bytes are all read once.
        """
        sound = (self._config.audio_column,) if self._reading.sounds else ()
        return map(self._key, self.scan((self._config.image_column, *IMAGE_NAMES, *sound)))

    def unsupported(self) -> Iterator[str | None]:
        """For each row, in order, the kind that keeps it from being read; no file is opened."""
        columns = (self._config.image_column, *IMAGE_NAMES, self._config.audio_column)
        return map(self._unsupported_kind, self.scan(columns))

    def image_folder(self, folder: Path) -> Path:
        """The folder that images are relative to in a table of `folder`."""
        return self._image_root or folder

    def image_column_in(self, found: Set[str]) -> str | None:
        """The column that holds the image, of those that a table has; None if it has none."""
        return next((name for name in (self._config.image_column, *IMAGE_NAMES) if name in found), None)

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns that are read if a table has them; one of `IMAGE_NAMES` may replace that of the image."""
        config = self._config
        sound = (config.audio_column,) if self._reading.sounds else ()
        asked = dialogue_columns(config) if self._reading.dialogues else ()
        return tuple(dict.fromkeys((config.image_column, config.caption_column, config.label_column, *sound, *asked)))

    def missing(self, found: Set[str]) -> str | None:
        """All columns that a table with the columns `found` lacks, with the fix; None if it has all."""
        config, sounds, dialogues = self._config, self._reading.sounds, self._reading.dialogues
        has_image, has_caption = self.image_column_in(found) is not None, config.caption_column in found
        lacks: list[tuple[str, str]] = []  # each with its fix
        if not (sounds or has_image):
            lacks.append((f"no column {config.image_column!r}", "dataset.image_column"))
        if dialogues:
            lacks += missing_columns(found, config)
        elif not (sounds or has_caption):
            lacks.append((f"no column {config.caption_column!r}", "dataset.caption_column"))
        if sounds and config.audio_column not in found:
            fix = "dataset.audio_column, or leave the audio_encoder out"
            lacks.append((f"no column {config.audio_column!r} for the sound", fix))
        elif sounds and not (has_image or has_caption or dialogues):
            fix = "dataset.image_column or dataset.caption_column"
            lacks.append(("no column for the image or the caption beside the sound", fix))
        if not lacks:
            return None
        faults, fixes = zip(*lacks, strict=True)
        return f"{' and '.join(faults)} (there are: {', '.join(sorted(found))}); set {' and '.join(fixes)}"

    def files(self, cells: Mapping[str, Any]) -> tuple[File | None, File | None]:
        """Image and sound of a row; None for one that may be missing and is.

        Raises:
            UnsupportedRow: the row has several images, or is text alone where only an image or a sound is asked about.
            ValueError: a needed file is missing, or on the web; the message is the reason alone.
        """
        image, sound = self._file_cells(cells)
        if isinstance(image, list):
            raise UnsupportedRow(SEVERAL_IMAGES, f"the row has several images ({len(image)}), and one is read")
        files = self._file(image, "image"), self._file(sound, "sound") if self._reading.sounds else None
        if self._reading.dialogues and not any(files):
            beside = " and without a sound" if self._reading.sounds else ""
            raise UnsupportedRow(TEXT_ALONE, f"the row is text alone, without an image{beside}")
        return files

    def read_texts(self, cells: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[Dialogue, ...], str | None]:
        """Captions, dialogues and label of a row.

        Raises:
            ValueError: a needed one is missing, or one is malformed; the message is the reason alone.
        """
        return self._captions(cells), self._dialogues(cells), read_label(cells.get(self._config.label_column))

    def _captions(self, cells: Mapping[str, Any]) -> tuple[str, ...]:
        may_lack = self._reading.sounds or self._reading.dialogues
        return read_captions(cells.get(self._config.caption_column), may_lack=may_lack)

    def _dialogues(self, cells: Mapping[str, Any]) -> tuple[Dialogue, ...]:
        return read_dialogues(cells, self._config) if self._reading.dialogues else ()

    def _by_sample(
        self, columns: Sequence[str], read: Callable[[Mapping[str, Any]], tuple[T, ...]]
    ) -> Iterator[tuple[T, ...]]:
        for row in self.scan(columns):
            try:
                yield () if row.fault else read(row.cells)
            except ValueError:
                yield ()

    def _key(self, row: Row) -> str:
        image, sound = self._file_cells(row.cells)
        if self.only_paths or isinstance(image, list):  # a row that names no file counts as an image of its own
            try:
                if not any(self.files(row.cells)):
                    return row.id
            except ValueError:
                return row.id
        is_sound = self._reading.sounds and not image
        file, folder = (sound, row.folder) if is_sound else (image, self.image_folder(row.folder))
        if isinstance(file, bytes):
            return blake2b(file, digest_size=16).hexdigest()
        return os.path.relpath(folder / (file or ""), self._root)

    def _unsupported_kind(self, row: Row) -> str | None:
        try:
            if row.cells:  # a damaged row has none
                self.files(row.cells)
        except UnsupportedRow as fault:
            return fault.kind
        except ValueError:
            pass  # a bad sample
        return None

    def _file_cells(self, cells: Mapping[str, Any]) -> tuple[Any, Any]:
        named = map(cells.get, (self._config.image_column, *IMAGE_NAMES))
        return _one_file(next(filter(None, named), None)), _one_file(cells.get(self._config.audio_column))

    def _file(self, cell: Any, what: Literal["image", "sound"]) -> File | None:
        if (self._reading.sounds or self._reading.dialogues) and cell in (None, "", b""):
            return None
        if self.only_paths and not (isinstance(cell, str) and cell.strip()):
            raise ValueError(f"no {what} path")
        if not cell:
            raise ValueError(f"there is no {what}")
        if isinstance(cell, str) and is_web_address(cell):
            raise ValueError(f"the {what} is an address on the web; download it first")
        return cell


def _one_file(cell: Any) -> Any:
    """The file of a cell, out of a list of one and out of a struct; several files are a list."""
    if isinstance(cell, list | tuple):
        files = [file for file in map(_one_file, cell) if file]
        return files if len(files) > 1 else next(iter(files), None)
    return cell.get("bytes") or cell.get("path") if isinstance(cell, dict) else cell


def is_web_address(path: str) -> bool:
    """True for a URL: data are read from disk only."""
    return "://" in path


def _image(file: File, folder: Path, shrink_to_px: int | None, config: DatasetConfig) -> Image.Image:
    try:
        data = file if isinstance(file, bytes) else (folder / file).read_bytes()
    except OSError as error:
        raise ValueError(f"the image cannot be read ({error.strerror or error}: {folder / str(file)})") from error
    return decode_image(data, shrink_to_px, config.max_image_pixels)


def _sound(file: File, folder: Path, max_seconds: float | None) -> Clip:
    assert max_seconds is not None  # a row has a sound only where sounds are read
    try:
        return decode_audio(file if isinstance(file, bytes) else folder / file, max_seconds)
    except ValueError as error:
        raise ValueError(f"the sound {error}") from error


class Subset:
    """The samples of another source for which `chosen` (N,) is true, in its order.

    `left_out` has the number of rows of each kind that were left out because they are not read.
    """

    def __init__(
        self, source: RowSource | Subset, chosen: NDArray[np.bool_], left_out: Mapping[str, int] | None = None
    ) -> None:
        self._source = source
        self._chosen = chosen
        self._indices = np.flatnonzero(chosen)
        self.left_out = dict(left_out or {})

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Sample:
        return self._source[int(self._indices[index])]

    def captions(self) -> Iterator[str]:
        return chain.from_iterable(self.captions_by_sample())

    def captions_by_sample(self) -> Iterator[tuple[str, ...]]:
        return compress(self._source.captions_by_sample(), self._chosen)

    def dialogues(self) -> Iterator[Dialogue]:
        return chain.from_iterable(self.dialogues_by_sample())

    def dialogues_by_sample(self) -> Iterator[tuple[Dialogue, ...]]:
        return compress(self._source.dialogues_by_sample(), self._chosen)

    def image_keys(self) -> Iterator[str]:
        return compress(self._source.image_keys(), self._chosen)

    def blocks(self) -> Blocks | None:
        whole = self._source.blocks()
        if whole is None:
            return None
        ends = np.searchsorted(self._indices, np.cumsum(whole.lengths))
        lengths = np.diff(ends, prepend=0)
        return Blocks(tuple(int(length) for length in lengths if length), whole.num_held)


def without_unsupported(source: RowSource) -> Subset:
    """The rows of a source less those of kinds that are not read, which are counted by kind.

    Raises:
        DataError: none is left.
    """
    kinds = list(source.unsupported())
    left_out = Counter(kind for kind in kinds if kind)
    if left_out.total() == len(kinds):
        raise DataError(f"data: all {len(kinds)} rows are {' or '.join(left_out)}; name rows of one image each")
    return Subset(source, np.array([kind is None for kind in kinds]), left_out)


def split_by_image(source: RowSource | Subset, val_fraction: float) -> tuple[Subset, Subset]:
    """Training and validation part of a source; samples of the same image are in the same part.

    The images with the smallest hashes are held out: `val_fraction` of them, at least one, at most all but one. So the
    parts depend on the images alone, not on their order, and hardly change when images are added.

    Raises:
        DataError: the source has fewer than two images.
    """
    digests = (blake2b(key.encode(errors="surrogateescape"), digest_size=8).digest() for key in source.image_keys())
    hashes = np.frombuffer(b"".join(digests), dtype="<u8")
    images = np.unique(hashes)
    if len(images) < 2:
        raise DataError("data: a single image cannot be divided into training and validation; set dataset.val_path")
    num_held_out = min(max(round(val_fraction * len(images)), 1), len(images) - 1)
    held_out = hashes <= images[num_held_out - 1]
    return Subset(source, ~held_out), Subset(source, held_out)
