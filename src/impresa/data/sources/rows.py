"""Rows of a table in any format, and the samples that are made of them.

A format (a folder, parquet, ...) is a subclass of `RowSource` that yields rows. `RowSource` has all rules about the
meaning of the columns, about those that a table needs, and about cells that may be empty.
"""

from __future__ import annotations

import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from impresa.config.dataset import DatasetConfig
from impresa.config.describe import listed
from impresa.config.encoder import Modality
from impresa.config.paths import expanded, looked_in
from impresa.config.shard_names import is_address
from impresa.data.class_names import ClassNames, class_name, configured_names
from impresa.data.dialogue import Dialogue
from impresa.data.sample import Sample
from impresa.data.sources.base import BadSample, Blocks, FoundImage, Reading
from impresa.data.sources.cells import files_in, linked, one_file
from impresa.data.sources.dialogues import dialogue_columns, holds_dialogues, missing_columns, read_dialogues
from impresa.data.sources.row_files import File, found_image, read_image, read_sound
from impresa.data.text import as_read, is_missing, plain, read_captions, read_label
from impresa.errors import DataError
from impresa.foreign_text import printable

logger = logging.getLogger(__name__)

T = TypeVar("T")
Part = Literal["image", "sound"]
IMAGE_NAMES = ("file_name", "images")
"""Other names of the image's column: that of Hugging Face's image folders, and that of lists of images."""
_NAMES: dict[Modality, str] = {"image": "image", "text": "caption", "audio": "sound"}
"""Words for the parts of a sample."""
_COLUMN_OF: dict[Modality, str] = {"image": "image_column", "text": "caption_column", "audio": "audio_column"}
"""Fields of `DatasetConfig` that name their columns."""
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
    """Values by column. An image or a sound is bytes, a path, Hugging Face's struct of `bytes` and `path`, or a list of
    one of them."""
    folder: Path
    """Folder that paths in the cells are relative to."""
    fault: str | None = None
    """Reason why the row cannot be used, if it shows without reading its files."""
    class_names: ClassNames = field(default_factory=dict)
    """Names of the labels in the row's own table, where it has some."""


class RowSource(ABC):
    """Samples made of rows. A format has a constructor of `path` and the last three arguments, and yields its rows.

    Args:
        root: folder of the data; the names of images are paths relative to it, or to `dataset.image_root`.
        config: names of the columns.
        reading: the parts that are read beside images and captions.
        shrink_to_px: least side of JPEGs that are shrunk while they are decoded; None decodes them at full size.
    """

    only_paths: ClassVar[bool] = False
    """True for a format that names images and sounds by paths, and never holds them as bytes."""

    def __init__(self, root: Path, config: DatasetConfig, reading: Reading, shrink_to_px: int | None) -> None:
        self._root = root
        self._config = config
        self._reading = reading
        self._shrink_to_px = shrink_to_px
        self._class_names = configured_names(config)
        self._max_bytes = config.max_file_mib << 20
        self._image_root = None if config.image_root is None else expanded(config.image_root)
        if self._image_root is not None and not self._image_root.is_dir():
            fix = f"name the one that holds the images{looked_in(self._image_root)}"
            raise DataError(f"dataset.image_root: {config.image_root} is no folder; {fix}")
        self._roots = self._allowed = prefixes(root)
        self._image_roots = () if self._image_root is None else prefixes(self._image_root)

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

    def other_columns(self) -> tuple[str, ...]:
        """Names of the columns beside those of image, caption, label and sound, where they are kept, in order."""
        return ()

    def __getitem__(self, index: int) -> Sample:
        return self._sample(index, decodes=True)

    def without_image(self, index: int) -> Sample:
        return self._sample(index, decodes=False)

    def image_at(self, index: int) -> FoundImage | None:
        row = self.row(index)
        try:
            if row.fault or not (images := self.files(row)[0]):
                return None
            return found_image(images[0], self._shrink_to_px, self._config)
        except ValueError:
            return None

    def _sample(self, index: int, *, decodes: bool) -> Sample:
        row = self.row(index)
        try:
            if row.fault:
                raise ValueError(row.fault)
            captions, dialogues, label = self._captions(row), self._dialogues(row), self._label(row)
            images, sound = self.files(row)
            if not self._reading.dialogues:
                self._check_parts(bool(images), sound is not None, bool(captions), label is not None)
            images = images if self._reading.wants("image") else ()
            decoded = [read_image(image, self._shrink_to_px, self._config) for image in images if decodes]
            clip = None if sound is None else read_sound(sound, self._reading.audio_seconds, self._max_bytes)
            negatives = self._negatives(row, captions) if images else ()
            first, more = next(iter(decoded), None), tuple(decoded[1:])
            return Sample(row.id, first, captions, label, clip, dialogues, negatives, more_images=more)
        except ValueError as error:
            raise BadSample(row.id, str(error)) from error

    def origin(self, index: int) -> tuple[str, str]:
        """Name of a sample, and a word that is another one once its row or one of its files has changed. No image and
        no sound is read: of a file its size and its time of change count."""
        row = self.row(index)
        try:
            images, sound = self.files(row)
            files = [found_of(file) if isinstance(file, str) else None for file in (*(images or (None,)), sound)]
        except ValueError:
            files = []
        return row.id, word_of(self.columns, sorted(row.cells.items()), row.fault, row.class_names, files)

    def captions(self) -> Iterator[str]:
        return chain.from_iterable(self.captions_by_sample())

    def captions_by_sample(self) -> Iterator[tuple[str, ...]]:
        """The captions of each sample, in order, without decoding an image; none if they are unusable."""
        return self._by_sample((self._config.caption_column,), lambda row: self._captions(row, may_lack=True))

    @property
    def labels_alone(self) -> bool:
        """True if the data have no caption at all and their labels are read in place of captions."""
        return self._reading.labels and not self._reading.dialogues and self._has_no_captions

    @cached_property
    def _has_no_captions(self) -> bool:
        if any(self.captions_by_sample()):
            return False
        column = f"column {self._config.caption_column!r}, dataset.caption_column"
        logger.warning("%s: no captions (%s), so labels alone are read", self._root, column)
        return True

    def dialogues(self) -> Iterator[Dialogue]:
        return chain.from_iterable(self.dialogues_by_sample())

    def dialogues_by_sample(self) -> Iterator[tuple[Dialogue, ...]]:
        """The same for questions and answers; empty if they are not read."""
        columns = dialogue_columns(self._config)
        return self._by_sample(columns, self._dialogues) if self._reading.dialogues else iter(())

    def image_keys(self) -> Iterator[str]:
        """A name of each sample's image, in order, or of its sound if it has no image.

        Equal images have equal names, the same in every run: the division into training and validation data follows
        from them. Samples of several images have one name if they share an image, by whatever others. Images held as
        bytes are all read once.
        """
        sound = (self._config.audio_column,) if self._reading.sounds else ()
        keys = map(self._keys, self.scan((*self._image_columns, *sound)))
        return linked(keys) if self._reading.max_images > 1 else (key for key, *_ in keys)

    def names_image(self) -> Iterator[bool]:
        """For each row, in order, true if it names an image; no file is opened."""
        return (bool(self._file_cells(row.cells)[0]) for row in self.scan(self._image_columns))

    def groups(self, column: str) -> Iterator[str | None]:
        """The name of each sample's group in a column, in order; None for a sample without one."""
        return (group_of(row.cells.get(column)) for row in self.scan((column,)))

    def unsupported(self) -> Iterator[str | None]:
        """For each row, in order, the kind that keeps it from being read; no file is opened."""
        return map(self._unsupported_kind, self.scan((*self._image_columns, self._config.audio_column)))

    @property
    def _image_columns(self) -> tuple[str, ...]:
        return (self._config.image_column, *IMAGE_NAMES)

    def image_folder(self, folder: Path) -> Path:
        """The folder that images are relative to in a table of `folder`."""
        return self._image_root or folder

    def image_column_in(self, found: Set[str]) -> str | None:
        """The column that holds the image, of those that a table has; None if it has none."""
        return next((name for name in self._image_columns if name in found), None)

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """All columns that are read if a table has them; one of `IMAGE_NAMES` may replace that of the image."""
        config = self._config
        sound = (config.audio_column,) if self._reading.sounds else ()
        asked = dialogue_columns(config) if self._reading.dialogues else ()
        wrong = (config.negative_column,) if self._reading.negatives and config.negative_column else ()
        grouped = (config.group_column,) if config.group_column else ()
        own = (config.image_column, config.caption_column, config.label_column)
        return tuple(dict.fromkeys((*own, *wrong, *grouped, *sound, *asked)))

    def missing(self, found: Set[str]) -> str | None:
        """All columns that a table with the columns `found` lacks, with the fix; None if it has all."""
        lacks = list(self._lacking_parts(found) if self._reading.parts else self._lacking(found))
        if not lacks:
            return None
        faults, fixes = zip(*lacks, strict=True)
        there = ", ".join(map(printable, sorted(found)))
        return f"{' and '.join(faults)} (there are: {there}); set {' and '.join(fixes)}"

    def _lacking_parts(self, found: Set[str]) -> Iterator[tuple[str, str]]:
        """Faults and their fixes where some parts are read alone and a table has none of them."""
        config, image = self._config, self.image_column_in(found)
        columns = {"image": image or config.image_column, "text": config.caption_column, "audio": config.audio_column}
        wanted = {part: columns[part] for part in self._reading.parts}
        if found.isdisjoint(wanted.values()):
            yield from ((f"no column {name!r}", f"dataset.{_COLUMN_OF[part]}") for part, name in wanted.items())

    def _lacking(self, found: Set[str]) -> Iterator[tuple[str, str]]:
        """Faults and their fixes, see `missing`."""
        config, sounds, dialogues = self._config, self._reading.sounds, self._reading.dialogues
        has_image, has_caption = self.image_column_in(found) is not None, config.caption_column in found
        has_label = config.label_column in found
        if self._reading.labels and has_image and has_label and not (has_caption or dialogues):
            return
        if not (sounds or has_image):
            yield f"no column {config.image_column!r}", "dataset.image_column"
        if dialogues:
            yield from missing_columns(found, config)
        elif not (sounds or has_caption):
            fix = f"dataset.caption_column; {self.only_labels}" if has_label else "dataset.caption_column"
            if holds_dialogues(found, config):
                fix += "; questions are read with a decoder (`impresa data check --questions`)"
            yield f"no column {config.caption_column!r}", fix
        if self._reading.negatives and config.negative_column not in found:
            yield f"no column {config.negative_column!r} for hard negatives", "dataset.negative_column"
        if sounds and config.audio_column not in found:
            fix = "dataset.audio_column, or leave the audio_encoder out"
            yield f"no column {config.audio_column!r} for the sound", fix
        elif sounds and not (has_image or has_caption or dialogues):
            fix = "dataset.image_column or dataset.caption_column"
            yield "no column for the image or the caption beside the sound", fix

    @property
    def only_labels(self) -> str:
        """The two uses of data that have labels and no captions."""
        column = self._config.label_column
        fix = f"dataset.caption_column={column} trains on the class names"
        return f"labels alone are for `impresa eval RUN --data PATH`, or {fix}"

    def files(self, row: Row) -> tuple[tuple[File, ...], File | None]:
        """Images and sound of a row; none where they may be missing and are.

        Raises:
            UnsupportedRow: the row has too many images, or is text alone where only an image or a sound is asked about.
            ValueError: a needed file is missing, on the web, or outside the folder of the data; the message is the
                reason alone.
        """
        cells, sound = self._file_cells(row.cells)
        if len(cells) > (most := self._reading.max_images):
            fault = f"the row has several images ({len(cells)}), and {'one is' if most == 1 else f'{most} are'} read"
            raise UnsupportedRow(SEVERAL_IMAGES, f"{fault} (dataset.max_images)" if self._reading.dialogues else fault)
        heard = self._file(sound, row.folder, "sound") if self._reading.sounds else None
        found = (self._file(cell, self.image_folder(row.folder), "image") for cell in cells or [None])
        images = tuple(image for image in found if image is not None)
        if self._reading.dialogues and not images and heard is None:
            beside = " and without a sound" if self._reading.sounds else ""
            raise UnsupportedRow(TEXT_ALONE, f"the row is text alone, without an image{beside}")
        return images, heard

    def _captions(self, row: Row, *, may_lack: bool = False) -> tuple[str, ...]:
        config, reading = self._config, self._reading
        may_lack = may_lack or reading.sounds or reading.dialogues or bool(reading.parts) or self.labels_alone
        names_are_captions = config.caption_column == config.label_column
        value = self._label(row) if names_are_captions else row.cells.get(config.caption_column)
        return read_captions(value, may_lack=may_lack)

    def _negatives(self, row: Row, captions: Sequence[str]) -> tuple[str, ...]:
        if not self._reading.negatives:
            return ()
        found = read_captions(row.cells.get(self._config.negative_column or ""), may_lack=True, what="negative caption")
        right = {as_read(caption) for caption in captions}
        return tuple(text for text in found if as_read(text) not in right)

    def _dialogues(self, row: Row) -> tuple[Dialogue, ...]:
        if not self._reading.dialogues:
            return ()
        return read_dialogues(row.cells, self._config)

    def _label(self, row: Row) -> str | None:
        label = read_label(row.cells.get(self._config.label_column))
        return class_name(label, self._class_names or row.class_names)

    def _check_parts(self, image: bool, sound: bool, caption: bool, label: bool) -> None:
        """Refuse a sample with fewer than two of its parts, or with none of those that are read alone."""
        there: dict[Modality, bool] = {"image": image, "text": caption, "audio": sound}
        if parts := self._reading.parts:
            if not any(there[part] for part in parts):
                raise ValueError(f"has no {listed(_NAMES[part] for part in parts)}")
        elif self.labels_alone:
            if image + sound + label < 2:
                raise ValueError("has only one of image, label and sound" if self._reading.sounds else "has no label")
        elif sum(there.values()) < 2:
            raise ValueError("has only one of image, caption and sound")

    def _by_sample(self, columns: Sequence[str], read: Callable[[Row], tuple[T, ...]]) -> Iterator[tuple[T, ...]]:
        for row in self.scan(columns):
            try:
                yield () if row.fault else read(row)
            except ValueError:
                yield ()

    def _keys(self, row: Row) -> tuple[str, ...]:
        """The names of a row's images, at least one, see `image_keys`."""
        images, sound = self._file_cells(row.cells)
        if self.only_paths or len(images) > 1:  # a row that names no file counts as an image of its own
            try:
                if not any(self.files(row)):
                    return (row.id,)
            except ValueError:
                return (row.id,)
        if self._reading.sounds and not images:
            return (self._key(sound, row.folder, "sound"),)
        return tuple(self._key(image, self.image_folder(row.folder), "image") for image in images or [None])

    def _key(self, file: Any, folder: Path, what: Part) -> str:
        if isinstance(file, bytes):
            return blake2b(file, digest_size=16).hexdigest()
        path = os.path.abspath(os.path.join(folder, file if isinstance(file, str) else ""))
        return self.name_of(path, what) or os.path.relpath(path, self._root)

    def name_of(self, path: str, what: Part = "image") -> str | None:
        """An absolute path relative to the folder of the data, or to that of the images; None outside it."""
        whole, roots = os.path.join(path, ""), (what == "image" and self._image_roots) or self._roots
        return next((path[len(root) :] or "." for root in roots if whole.startswith(root)), None)

    def _unsupported_kind(self, row: Row) -> str | None:
        try:
            if row.cells:  # a damaged row has none
                self.files(row)
        except UnsupportedRow as fault:
            return fault.kind
        except ValueError:
            pass  # a bad sample
        return None

    def _file_cells(self, cells: Mapping[str, Any]) -> tuple[list[Any], Any]:
        """The cells of images that hold anything, and that of the sound."""
        named = map(cells.get, self._image_columns)
        images = next((found for cell in named if (found := files_in(cell))), [])
        return images, one_file(cells.get(self._config.audio_column))

    def _file(self, cell: Any, folder: Path, what: Part) -> File | None:
        lacks = is_missing(cell)
        if lacks and (self._reading.sounds or self._reading.dialogues or self._reading.parts):
            return None
        if self.only_paths and (lacks or not isinstance(cell, str)):
            raise ValueError(f"no {what} path")
        if lacks:
            raise ValueError(f"there is no {what}")
        if isinstance(cell, bytes):
            return cell
        if not isinstance(cell, str):
            raise ValueError(f"the {what} is neither bytes nor a path but {cell!r:.60}")
        if is_address(cell):
            raise ValueError(f"the {what} is an address on the web; download it first (images: `impresa data fetch`)")
        path = os.path.abspath(os.path.join(folder, cell))
        allowed = (self._allowed + self._image_roots) if what == "image" else self._allowed
        if not (self._config.allow_outside or f"{path}{os.sep}".startswith(allowed)):
            fix = "move it there, or set dataset.allow_outside=true"
            raise ValueError(f"the {what} lies outside the folder of the data ({printable(cell)}); {fix}")
        return path


def found_of(file: str | Path) -> tuple[int, int] | None:
    """Size and time of change of a file; None if there is none."""
    try:
        found = os.stat(file)
    except (OSError, ValueError):
        return None
    return found.st_size, found.st_mtime_ns


def word_of(*values: object) -> str:
    """A short word for plain values, the same in every process."""
    return blake2b(repr(values).encode(errors="surrogatepass"), digest_size=12).hexdigest()


def prefixes(folder: Path) -> tuple[str, ...]:
    """Beginnings of the paths in a folder: its own name, and its name without links, for a table may use either."""
    return tuple(dict.fromkeys(os.path.join(path(folder), "") for path in (os.path.abspath, os.path.realpath)))


def group_of(cell: Any) -> str | None:
    """The name of a group: text that is not empty, or a number; anything else names none."""
    try:
        value = plain(cell)
    except ValueError:
        return None
    return str(value).strip() or None if isinstance(value, str | int | float) else None
