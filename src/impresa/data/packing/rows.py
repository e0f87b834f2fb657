"""Rows of any source as they are: the files' own bytes, and all columns beside them."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from PIL import Image

from impresa.config.dataset import DatasetConfig
from impresa.config.paths import EMBEDDED
from impresa.data.class_names import class_name
from impresa.data.disk import read_regular
from impresa.data.image_files import open_image, suffix_of
from impresa.data.images import decode_image
from impresa.data.sources import BadSample, kind_of, open_path
from impresa.data.sources.base import WHOLE_ROWS, Reading
from impresa.data.sources.rows import IMAGE_NAMES, File, Row, RowSource, group_of
from impresa.data.sources.shapes import ShapesSource
from impresa.data.text import is_missing, is_unicode, read_label
from impresa.foreign_text import printable

ORIGIN = "source_id"
"""Column with the name that a row has where it comes from."""
_SOUNDS = {b"RIFF": "wav", b"fLaC": "flac", b"OggS": "ogg"}


@dataclass(frozen=True)
class PackRow:
    """A row with its files read."""

    id: str
    images: tuple[bytes, ...]
    sound: bytes | None
    columns: Mapping[str, Any] = field(default_factory=dict)
    """All other cells; bytes are further files."""
    group: str | None = None
    """Value of `dataset.group_column`."""

    @property
    def image_suffixes(self) -> list[str]:
        """Of each image, by its content."""
        return [suffix_of(open_image(io.BytesIO(image), 1 << 62)) for image in self.images]

    @property
    def sound_suffix(self) -> str:
        return _SOUNDS.get((self.sound or b"")[:4], "mp3")


class Rows(Protocol):
    """Rows with random access."""

    left_out: Mapping[str, int]
    """What the source leaves out, by reason."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> PackRow:
        """Raises `BadSample` for one that cannot be read."""


def open_rows(config: DatasetConfig, path: str) -> Rows:
    """The rows of whatever `dataset.train_path` takes; of `shapes` the training scenes.

    Raises:
        DataError: there is no such data, or nothing in them is an image or a sound.
    """
    if kind_of(config, path) == EMBEDDED:
        reading = Reading(WHOLE_ROWS.audio_seconds, dialogues=True)
        return _ShapesRows(ShapesSource(config.shapes, "train", config.image_size, reading))
    config = replace(config, skip_unsupported_rows=False)
    source = open_path(config, path, WHOLE_ROWS)
    assert isinstance(source, RowSource)
    return _TableRows(source, config)


def decoded(row: PackRow, max_pixels: int) -> list[Image.Image]:
    """The upright RGB images of a row. Raises `BadSample` if one cannot be decoded."""
    try:
        return [decode_image(image, None, max_pixels) for image in row.images]
    except ValueError as error:
        raise BadSample(row.id, str(error)) from error


class _TableRows:
    def __init__(self, source: RowSource, config: DatasetConfig) -> None:
        self._source, self._config = source, config
        self._max_bytes = config.max_file_mib << 20
        self.left_out: Mapping[str, int] = getattr(source, "left_out", {})

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> PackRow:
        row = self._source.row(index)
        try:
            if row.fault:
                raise ValueError(row.fault)
            found, heard = self._files(row)
            images = tuple(self._read(image, "image") for image in found)
            sound = None if heard is None else self._read(heard, "sound")
            columns = self._columns(row)
        except ValueError as error:
            raise BadSample(row.id, str(error)) from error
        group = group_of(row.cells.get(self._config.group_column)) if self._config.group_column else None
        return PackRow(row.id, images, sound, {ORIGIN: row.id, **columns}, group)

    def _files(self, row: Row) -> tuple[tuple[File, ...], File | None]:
        images, sound = self._source.files(row)
        if not images and sound is None:
            raise ValueError("has neither an image nor a sound")
        return images, sound

    def _read(self, file: File, what: str) -> bytes:
        if not isinstance(file, str):
            return file
        try:
            return read_regular(file, self._max_bytes)
        except OSError as error:
            raise ValueError(f"the {what} cannot be read ({error.strerror or error}: {printable(file)})") from error
        except ValueError as error:
            raise ValueError(f"the {what} {error}") from error

    def _columns(self, row: Row) -> dict[str, Any]:
        """All cells but those of images and sound; labels with names of their table's own are these names."""
        config, cells = self._config, row.cells
        of_image = next((name for name in (config.image_column, *IMAGE_NAMES) if not is_missing(cells.get(name))), None)
        files = (of_image, config.image_column, config.audio_column)
        columns = {name: _file_of(value) for name, value in cells.items() if name not in files}
        if row.class_names:
            columns[config.label_column] = class_name(read_label(cells.get(config.label_column)), row.class_names)
        used = {*self._source.columns} & columns.keys()
        if broken := sorted(name for name in used if not all(map(is_unicode, _texts(columns[name])))):
            raise ValueError(f"the text in column {broken[0]!r} is not UTF-8")
        return columns


class _ShapesRows:
    def __init__(self, source: ShapesSource) -> None:
        self._source = source
        self.left_out: Mapping[str, int] = {}

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> PackRow:
        import soundfile

        sample = self._source[index]
        assert sample.image is not None
        assert sample.audio is not None
        image, sound = io.BytesIO(), io.BytesIO()
        sample.image.save(image, "PNG")
        soundfile.write(sound, sample.audio.samples.numpy(), sample.audio.rate_hz, "PCM_16", format="WAV")
        turns = [dialogue.turns[0] for dialogue in sample.dialogues]
        columns = {
            ORIGIN: sample.id,
            "caption": sample.captions[0],
            "question": [turn.question for turn in turns],
            "answer": [turn.answer for turn in turns],
            "kind": [dialogue.kind for dialogue in sample.dialogues],
        }
        return PackRow(sample.id, (image.getvalue(),), sound.getvalue(), columns)


def _file_of(value: Any) -> Any:
    """A further file out of the struct that the `datasets` library keeps it in."""
    is_file = isinstance(value, dict) and value.keys() == {"bytes", "path"} and isinstance(value["bytes"], bytes)
    return value["bytes"] if is_file else value


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | tuple | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)
