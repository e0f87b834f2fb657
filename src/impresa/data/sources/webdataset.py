"""WebDataset's tar shards, read in any order by an index of each.

The files of a sample follow each other under one name, and what a file is follows from the rest of its name:

- an image's suffix: the image, or with a number before it (`0.jpg`, `1.jpg`) one of several; a sound's (`wav`, `flac`,
  `ogg`, `mp3`): the sound;
- `txt`: captions, one a line; `cls`: the label;
- `json`: an object, whose values are columns; a caption or a label in a file of its own comes before them;
- the whole of it the name of a column (`dataset.image_column=left.jpg`): that column.

Nothing else is opened, so no pickle is ever read. A shard that ends early gives its whole samples, and a bad one that
says where it ends.
"""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import accumulate, islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

from impresa.config.dataset import DatasetConfig
from impresa.config.shard_names import is_address, shown_address
from impresa.data.disk import check_size
from impresa.data.fetch.summary import missing_rows
from impresa.data.image_files import image_suffixes
from impresa.data.shards.cache import ShardCache, cache_folder
from impresa.data.shards.handles import Handles
from impresa.data.shards.index import ShardIndex
from impresa.data.shards.places import Shard, find_shards, indexed
from impresa.data.sources.base import IMAGES_AND_CAPTIONS, Blocks, Reading, locate, say_once
from impresa.data.sources.folder import SOUND_SUFFIXES
from impresa.data.sources.rows import IMAGE_NAMES, Row, RowSource, word_of
from impresa.data.sources.tables import decoded
from impresa.errors import DataError
from impresa.foreign_text import printable
from impresa.json_files import parse_json

logger = logging.getLogger(__name__)

_MOST_SAMPLES_LOOKED_AT = 1000
"""For the columns in their JSON, before one is called missing."""
_MOST_NAMED = 5
_PICKLES = ("pyd", "pickle", "pkl", "pth", "pt")
"""Ends of the names of files that are programs to who opens them; they are never read."""


_NUMBERED = re.compile(r"(\d{1,4})(\.[^.]+)")
"""The end of the name of one of several images."""


def is_of_file(extension: str) -> bool:
    """True for what follows the name of an image or a sound, also of one of several."""
    numbered = _NUMBERED.fullmatch(extension)
    return (numbered[2] if numbered else f".{extension}") in image_suffixes() | {*SOUND_SUFFIXES}


class _Role(NamedTuple):
    """The use of a file of a sample: how it is read, and the column that it fills."""

    form: Literal["file", "text", "lines", "json"]
    column: str


class ShardSource(RowSource):
    """Samples of tar shards, in the order of shards and files.

    Args:
        path: a shard, a folder with shards in it or below it, a pattern, names in braces such as
            `shards/{0000..0099}.tar`, or an address of any of these that fsspec can open; for the others see
            `RowSource`.

    Raises:
        DataError: a shard is missing, there is no sample, or none has the needed parts.
    """

    def __init__(
        self,
        path: Path | str,
        config: DatasetConfig,
        reading: Reading = IMAGES_AND_CAPTIONS,
        shrink_to_px: int | None = None,
    ) -> None:
        self._name = shown_address(str(path)) if is_address(str(path)) else str(path)
        super().__init__(Path(self._name), config, reading, shrink_to_px)
        cache = ShardCache(cache_folder(), round(config.shard_cache_gib * (1 << 30)))
        self._max_bytes_cached = cache.max_bytes
        self._shards = find_shards(str(path))
        self._indexes = indexed(self._shards, cache)
        self._handles = Handles(cache)
        self._ends = list(accumulate(len(index) + bool(index.fault) for index in self._indexes))
        self._roles = self._roles_of({name for index in self._indexes for name in index.extensions})
        self._numbers = {name: int(found[1]) for name in self._roles if (found := _NUMBERED.fullmatch(name))}
        self._report()
        if not any(map(len, self._indexes)):
            faults = (f"{self._shards[n].name} {index.fault}" for n, index in enumerate(self._indexes) if index.fault)
            raise DataError(f"{self._name}: no samples ({next(faults, 'the shards are empty')}); name shards with some")
        if fault := self.missing(self._columns_there()):
            raise DataError(f"{self._name}: {fault}")

    @property
    def left_out(self) -> dict[str, int]:
        """Numbers of files in the shards that are part of no sample, by the reason."""
        total = Counter[str]()
        for index in self._indexes:
            total.update(index.left_out)
        total.pop("folders", None)  # they hold nothing themselves
        return dict(total)

    @property
    def missing_rows(self) -> list[str]:
        """A line about the rows of a table that were not fetched, for each folder that this is true of."""
        folders = sorted({os.path.dirname(shard.place) for shard in self._shards if not is_address(shard.place)})
        return [line for folder in folders if (line := missing_rows(Path(folder))) is not None]

    def __len__(self) -> int:
        return self._ends[-1]

    def row(self, index: int) -> Row:
        return self._row(*locate(index, self._ends), None)

    def origin(self, index: int) -> tuple[str, str]:
        number, sample = locate(index, self._ends)
        shard, found = self._shards[number], self._indexes[number]
        holds_files = any(role.form == "file" for role in self._roles.values())
        if sample == len(found) or not holds_files:  # they may be named by JSON, and lie outside
            return super().origin(index)
        return _id_of(shard, found, sample), word_of(self.columns, shard.stamp)

    def scan(self, columns: Sequence[str]) -> Iterator[Row]:
        wanted = set(columns)
        for number, index in enumerate(self._indexes):
            for sample in range(len(index) + bool(index.fault)):
                yield self._row(number, sample, wanted)

    def blocks(self) -> Blocks | None:
        """Shards that are copied, if not all copies fit into the cache; half of it is for the next ones."""
        sizes = [index.num_bytes for shard, index in zip(self._shards, self._indexes, strict=True) if shard.is_copied]
        if sum(sizes) <= self._max_bytes_cached:
            return None
        lengths = tuple(len(index) + bool(index.fault) for index in self._indexes)
        return Blocks(lengths, max(self._max_bytes_cached // (2 * max(sizes)), 1))

    def _row(self, number: int, sample: int, wanted: set[str] | None) -> Row:
        shard, index = self._shards[number], self._indexes[number]
        if sample == len(index):
            return Row(f"{printable(shard.name)}:end", {}, self._root, f"the shard {index.fault}")
        id = _id_of(shard, index, sample)
        try:
            return Row(id, self._cells(shard, index, sample, wanted), self._root)
        except OSError as error:
            return Row(id, {}, self._root, f"the shard cannot be read ({error.strerror or error})")
        except (ValueError, DataError) as error:
            return Row(id, {}, self._root, str(error))

    def _cells(self, shard: Shard, index: ShardIndex, sample: int, wanted: set[str] | None) -> dict[str, Any]:
        files = index.files(sample)
        kinds = Counter(kind for kind, _, _ in files)
        if len(kinds) < len(files):
            twice = printable(index.extensions[kinds.most_common(1)[0][0]])
            raise ValueError(f"the sample has two .{twice} files")
        read = [(role, *file) for file in files if (role := self._roles.get(index.extensions[file[0]])) is not None]
        if self._numbers:
            read.sort(key=lambda file: self._numbers.get(index.extensions[file[1]], 0))
        if wanted is not None:
            columns = {role.column for role, *_ in read}
            needs_json = not wanted <= {*self._file_columns, *columns}
            read = [file for file in read if file[0].column in wanted or (needs_json and file[0].form == "json")]
        cells, of_json = dict[str, Any](), dict[str, Any]()
        for (role, kind, _, _), content in zip(read, self._contents(shard, index, read), strict=True):
            try:
                if role.form == "json":
                    of_json = self._columns_of(content)
                elif role.form == "file" and role.column in cells:
                    cells[role.column] = [*_listed(cells[role.column]), content]
                else:
                    cells[role.column] = content if role.form == "file" else _text(content, role.form)
            except ValueError as error:
                raise ValueError(f"the .{printable(index.extensions[kind])} file {error}") from error
        return of_json | cells

    def _contents(self, shard: Shard, index: ShardIndex, files: Sequence[tuple[_Role, int, int, int]]) -> list[bytes]:
        for _, kind, _, length in files:
            try:
                check_size(length, self._max_bytes)
            except ValueError as error:
                raise ValueError(f"the .{printable(index.extensions[kind])} file {error}") from error
        return self._handles.read(shard, [(offset, length) for _, _, offset, length in files]) if files else []

    @property
    def _file_columns(self) -> tuple[str, ...]:
        return (self._config.image_column, *IMAGE_NAMES, self._config.audio_column)

    def _columns_of(self, content: bytes) -> dict[str, Any]:
        try:
            values = parse_json(decoded(content))
        except ValueError as error:
            raise ValueError(f"is no JSON ({error})") from error
        if not isinstance(values, dict):
            raise ValueError("is no JSON object")
        names = values if self._reading.whole else self.columns
        return {name: values[name] for name in names if name in values and name not in self._file_columns}

    def _roles_of(self, extensions: set[str]) -> dict[str, _Role]:
        """The use of the files of each suffix that is read."""
        config, reading = self._config, self._reading
        by_suffix = dict[str, _Role]()
        if reading.wants("image"):
            by_suffix |= {suffix: _Role("file", config.image_column) for suffix in image_suffixes()}
        if reading.sounds:
            by_suffix |= {suffix: _Role("file", config.audio_column) for suffix in SOUND_SUFFIXES}
        by_suffix |= {".txt": _Role("lines", config.caption_column), ".cls": _Role("text", config.label_column)}
        by_suffix[".json"] = _Role("json", "")
        named = {
            column: role
            for column in {*self.columns, config.image_column}
            if column in extensions and (role := self._role_of_column(column)) is not None
        }
        taken = {role.column for role in named.values() if role.form == "file"}
        roles = {name: by_suffix[f".{name}"] for name in extensions if f".{name}" in by_suffix}
        if reading.wants("image"):
            of_image = {
                name: found[2] in image_suffixes() for name in extensions if (found := _NUMBERED.fullmatch(name))
            }
            roles |= {name: _Role("file", config.image_column) for name, is_one in of_image.items() if is_one}
        if reading.whole:
            others = extensions - roles.keys()
            roles |= {name: _Role("file", name) for name in others if not name.endswith(_PICKLES)}
        return {name: role for name, role in roles.items() if role.column not in taken} | named

    def _role_of_column(self, column: str) -> _Role | None:
        config = self._config
        if column == config.image_column:
            return _Role("file", column) if self._reading.wants("image") else None
        if column == config.audio_column:
            return _Role("file", column)
        return _Role("lines" if column == config.caption_column else "text", column)

    def _columns_there(self) -> set[str]:
        """Columns of the kinds of files that are read, names of the other kinds, and columns in the first samples'
        JSON."""
        kinds = {name for index in self._indexes for name in index.extensions}
        found = {self._roles[name].column if name in self._roles else name for name in kinds} - {""}
        texts = [name for name in self.columns if name not in self._file_columns]
        rows = islice(self.scan(texts), _MOST_SAMPLES_LOOKED_AT)
        while self.missing(found) is not None and (row := next(rows, None)) is not None:
            found |= row.cells.keys()
        return found

    def _report(self) -> None:
        """Say, once in a process, what the shards hold beside good samples, and what was never fetched into them."""
        for missing in self.missing_rows:
            say_once(logging.WARNING, f"{self._name}: {missing}; `impresa data fetch` goes on, and tells why")
        faults = [f"{s.name} {i.fault}" for s, i in zip(self._shards, self._indexes, strict=True) if i.fault]
        for fault in faults[:_MOST_NAMED]:
            say_once(logging.WARNING, f"{self._name}: {printable(fault)}")
        if len(faults) > _MOST_NAMED:
            say_once(logging.WARNING, f"{self._name}: {len(faults) - _MOST_NAMED} more shards end early")
        if left_out := self.left_out:
            kinds = ", ".join(f"{kind} {number}" for kind, number in left_out.items())
            say_once(logging.INFO, f"{self._name}: {sum(left_out.values())} files are left out ({kinds})")
        repeats = [
            (shard, index) for shard, index in zip(self._shards, self._indexes, strict=True) if index.repeats.any()
        ]
        if repeats:
            shard, index = repeats[0]
            first = printable(f"{shard.name}/{index.key(int(index.repeats.argmax()))}")
            number = sum(int(index.repeats.sum()) for _, index in repeats)
            fault = f"{number} samples have the name of an earlier one in their shard, the first is {first}"
            say_once(logging.WARNING, f"{self._name}: {fault}; the files of a sample must follow each other")


def _id_of(shard: Shard, index: ShardIndex, sample: int) -> str:
    return printable(f"{shard.name}/{index.key(sample)}{'#2' if index.repeats[sample] else ''}")


def _text(content: bytes, form: str) -> str | list[str]:
    text = decoded(content)
    return text.splitlines() if form == "lines" else text.strip()


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
