"""Rows as WebDataset's shards: an image and a sound under their own suffix, several images as `0.jpg`, `1.jpg`, ...,
captions in `txt`, the rest in `json`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from impresa.config.dataset import DatasetConfig
from impresa.data.packing.rows import PackRow
from impresa.data.shards.writer import ShardWriter
from impresa.data.sources.webdataset import is_of_file
from impresa.data.text import read_captions

_TAKEN = ("txt", "cls", "json")


class ShardPacker:
    """Writes rows into the shards of a folder."""

    def __init__(self, folder: Path, max_bytes: int, config: DatasetConfig) -> None:
        self._writer = ShardWriter(folder, max_bytes)
        self._config = config
        self._number = 0

    def add(self, row: PackRow) -> None:
        files: dict[str, bytes] = {}
        for number, (image, suffix) in enumerate(zip(row.images, row.image_suffixes, strict=True)):
            files[suffix if len(row.images) == 1 else f"{number}.{suffix}"] = image
        if row.sound is not None:
            files[row.sound_suffix] = row.sound
        columns = dict(row.columns)
        if (text := self._caption_text(columns)) is not None:
            del columns[self._config.caption_column]
            files["txt"] = text.encode()
        for name in [name for name, value in columns.items() if isinstance(value, bytes)]:
            files[_extension(name, {*files, *_TAKEN})] = columns.pop(name)
        files["json"] = json.dumps(columns, default=_plain).encode()
        self._writer.add(f"{self._number:09d}", files)
        self._number += 1

    def close(self) -> list[str]:
        """Finish, and give the names of the shards."""
        self._writer.close()
        return self._writer.finished

    def abandon(self) -> None:
        self._writer.abandon()

    def _caption_text(self, columns: dict[str, Any]) -> str | None:
        """The captions, one a line, if they are read from lines as they are from the cell."""
        column = self._config.caption_column
        if column not in columns or column == self._config.label_column:
            return None
        try:
            captions = read_captions(columns[column], may_lack=True)
            text = "\n".join(captions)
            return text if captions and read_captions(text.splitlines()) == captions else None
        except ValueError:
            return None


def _extension(column: str, taken: set[str]) -> str:
    """The kind of a further file: the name of its column, as far as files can be called so, and readers take it for
    no image and no sound."""
    name = re.sub(r"[^a-z0-9_.-]", "_", column.lower()).strip(".") or "file"
    while name in taken or is_of_file(name):
        name += "_"
    return name


def _plain(value: Any) -> Any:
    """What JSON has no form for: bytes within lists are hexadecimal, times and other things their own text."""
    return value.hex() if isinstance(value, bytes) else str(value)
