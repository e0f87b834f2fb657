"""Samples of any source as items of an index, each with the words that tell whether it has changed."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import pyarrow as pa
from PIL import Image

from impresa.config.encoder import Modality
from impresa.data.disk import read_regular
from impresa.data.sample import Sample
from impresa.data.sources import BadSample, Source
from impresa.data.sources.row_files import File
from impresa.data.sources.rows import Row, RowSource, found_of, word_of
from impresa.data.text import as_unicode
from impresa.errors import DataError
from impresa.search.store import OWN_COLUMNS

THUMBNAIL_PX = 128
_MOST_OTHERS = 32
"""Columns of the data that an index takes over."""
_LONGEST_NAME, _LONGEST_TEXT = 64, 1_000
"""Characters of the name of such a column, and of a text in it."""
_TYPES: dict[type, pa.DataType] = {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string()}
_NAMES = {pa.bool_(): "true or false", pa.int64(): "whole numbers", pa.float64(): "numbers", pa.string(): "texts"}


@dataclass(frozen=True)
class Item:
    """An image, a sound or a text, before it is embedded."""

    key: str
    """The same for one item of one source in every update."""
    source: str
    id: str
    modality: Modality
    path: str | None
    """Of its file, relative to the source; None if it is held in a table."""
    caption: str | None
    """All captions of an image or a sound, a line each; of a text itself."""
    label: str | None
    hash: str
    """Equal for equal content, wherever it lies."""
    stamp: str
    others: Mapping[str, Any] = field(repr=False)
    """Cells of the columns that the index takes over."""
    value: Any = field(repr=False)
    """What is embedded."""


class Reader:
    """The samples of one source.

    Args:
        name: of the source, in full, so that it is the same in every update.
        source: opened with these modalities as the `parts` of its `Reading`, and with `others`.
        modalities: the parts of a sample that become items.
    """

    def __init__(self, name: str, source: Source, modalities: Sequence[Modality]) -> None:
        self.name = name
        self._source = source
        self._modalities = tuple(modalities)
        self._rows = source if isinstance(source, RowSource) else None
        self._columns = _columns_of(source) if isinstance(source, RowSource) else {}

    @property
    def fields(self) -> list[pa.Field]:
        """The columns of the data that the index takes over."""
        return list(self._columns.values())

    def __len__(self) -> int:
        return len(self._source)

    def origin(self, index: int) -> tuple[str, str]:
        """Name of a sample and its stamp, which changes with whatever an index has of it. A source whose samples lie in
        files does not read them for this."""
        if self._rows is not None:
            id, word = self._rows.origin(index)
        else:
            sample = self._source[index]
            id, word = sample.id, word_of(sample.image_key, sample.audio_key, sample.captions, sample.label)
        return as_unicode(id), word_of(word, self._modalities)

    def items(self, index: int, stamp: str) -> list[Item]:
        """What a sample has to embed. Raises `BadSample`."""
        row = None if self._rows is None else self._rows.row(index)
        image, sound = self._files(row)
        before = [_found(file) for file in (image, sound)]
        sample = self._source[index]
        others = {} if row is None else _others(row, self._columns)
        captions = "\n".join(sample.captions) or None
        found: list[tuple[Modality, str, File | None, str | None, Any]] = []
        if sample.image is not None:
            found.append(("image", _hash(image, sample, "image"), image, captions, sample.image))
        if sample.audio is not None:
            found.append(("audio", _hash(sound, sample, "audio"), sound, captions, sample.audio))
        texts = [("text", _hash(text.encode(), sample, "text"), None, text, text) for text in sample.captions]
        if [_found(file) for file in (image, sound)] != before:  # what was hashed may not be what was decoded
            raise BadSample(sample.id, "has changed while it was read; the next update reads it again")
        return [
            self._item(sample, number, part, stamp, others)
            for number, part in enumerate((*found, *texts))
            if part[0] in self._modalities
        ]

    def _files(self, row: Row | None) -> tuple[File | None, File | None]:
        """The image and the sound of a row, if it has any."""
        with suppress(ValueError):  # the source says of a bad row what is wrong with it
            if self._rows is not None and row is not None and not row.fault:
                images, sound = self._rows.files(row)
                return next(iter(images), None), sound
        return None, None

    def _item(self, sample: Sample, number: int, part: Any, stamp: str, others: Mapping[str, Any]) -> Item:
        modality, content, file, caption, value = part
        key = word_of(self.name, sample.id, modality, number if modality == "text" else 0)
        path = self._path_of(file, modality)
        return Item(key, self.name, sample.id, modality, path, caption, sample.label, content, stamp, others, value)

    def _path_of(self, file: File | None, modality: Modality) -> str | None:
        if not isinstance(file, str) or self._rows is None:
            return None
        return self._rows.name_of(file, "sound" if modality == "audio" else "image") or file


def check_types(reader: Reader, schema: pa.Schema) -> list[pa.Field]:
    """The columns that a source has and an index lacks.

    Raises:
        DataError: a column of both holds something else there.
    """
    new = []
    for column in reader.fields:
        if column.name not in schema.names:
            new.append(column)
        elif (there := schema.field(column.name).type) not in (column.type, pa.string()):
            if (column.type, there) == (pa.int64(), pa.float64()):
                continue
            fault = f"column {column.name!r} holds {_NAMES[column.type]}, and in the index {_NAMES.get(there, there)}"
            raise DataError(f"{reader.name}: {fault}; rename it, or make another index")
    return new


def cell_for(value: Any, kind: pa.DataType) -> Any:
    """A cell as a column of the index takes it."""
    if value is None or pa.types.is_string(kind):
        return None if value is None else as_unicode(str(value)[:_LONGEST_TEXT])
    return float(value) if pa.types.is_floating(kind) else value


def thumbnail_of(image: Image.Image) -> bytes:
    """A JPEG of at most 128 pixels a side. JPEG, for it takes a tenth of the time of WebP, and indexing must not take
    longer than embedding."""
    small = image.convert("RGB") if image.mode != "RGB" else image.copy() if max(image.size) <= THUMBNAIL_PX else image
    if max(image.size) > THUMBNAIL_PX:
        scale = THUMBNAIL_PX / max(image.size)
        size = tuple(max(1, round(side * scale)) for side in image.size)
        small = small.resize((size[0], size[1]), Image.Resampling.BILINEAR, reducing_gap=1.5)
    buffer = io.BytesIO()
    small.save(buffer, "jpeg", quality=80)
    return buffer.getvalue()


def _found(file: File | None) -> tuple[int, int] | None:
    return found_of(file) if isinstance(file, str) else None


def _hash(file: File | None, sample: Sample, modality: Modality) -> str:
    """Of the content of a file, or of a text; where there is none of what it was decoded to, which takes longer."""
    with suppress(OSError, ValueError):  # a file was there a moment ago
        if file is not None:
            content = file if isinstance(file, bytes) else read_regular(file)
            return blake2b(content, digest_size=16).hexdigest()
    return word_of(sample.image_key if modality == "image" else sample.audio_key)


def _columns_of(source: RowSource) -> dict[str, pa.Field]:
    """Column of the index by column of the data, for those of single texts or numbers."""
    names = source.other_columns()
    kinds: dict[str, set[type]] = {name: set() for name in names}
    for row in source.scan(names) if names else ():
        for name, kind in kinds.items():
            value = row.cells.get(name)
            if value is not None:
                is_too_long = type(value) is int and not -(2**63) <= value < 2**63
                kind.add(str if is_too_long else type(value))  # numbers that no column of numbers holds
    found: dict[str, pa.Field] = {}
    taken = set(OWN_COLUMNS)
    for name, kind in kinds.items():
        if kind and kind <= _TYPES.keys() and name.isprintable() and name.strip() and len(found) < _MOST_OTHERS:
            own = _own_name(name)
            if own.lower() not in taken:
                found[name] = pa.field(own, _type_of(kind))
                taken.add(own.lower())
    return found


def _own_name(name: str) -> str:
    """A name that is free in the index, and that a condition can hold."""
    name = name.replace(".", "_").replace("`", "_")[:_LONGEST_NAME]
    return f"{name}_" if name.lower() in OWN_COLUMNS else f"data{name}" if name.startswith("_") else name


def _type_of(kinds: set[type]) -> pa.DataType:
    if len(kinds) == 1:
        return _TYPES[next(iter(kinds))]
    return pa.float64() if kinds == {int, float} else pa.string()


def _others(row: Row, columns: Mapping[str, pa.Field]) -> dict[str, Any]:
    cells = ((column, row.cells.get(name)) for name, column in columns.items())
    return {column.name: cell_for(value, column.type) for column, value in cells}
