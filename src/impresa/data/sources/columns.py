"""The columns of a table that can only be its images and its texts, told by what the first rows hold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from impresa.config.dataset import DatasetConfig
from impresa.config.describe import listed
from impresa.config.hub_names import is_on_hub
from impresa.config.paths import expanded
from impresa.data.disk import folders_below, paths_of
from impresa.data.image_files import image_suffixes
from impresa.data.sources import kind_of
from impresa.data.sources.folder import METADATA_NAMES, SOUND_SUFFIXES, tables_at_the_top
from impresa.data.sources.rows import IMAGE_NAMES
from impresa.data.sources.tables import TOKEN, open_table
from impresa.errors import DataError
from impresa.foreign_text import printable

if TYPE_CHECKING:
    from impresa.data.sources.parquet_files import Place

ROWS = 50
"""That are looked at."""
_MOST_BYTES = 64 << 20
"""Of a row group that is read for its first rows."""
Cells = Mapping[str, Any]


def guess_columns(config: DatasetConfig) -> dict[str, str]:
    """The columns of images and texts, by the key of `dataset` that names them, where the table at `train_path` has
    none of the configured name and just one that it can be. Empty for data that are no table.

    Raises:
        DataError: several columns could be meant, or none.
    """
    rows = _first_rows(config)
    found = set[str]().union(*rows)
    if not rows:
        return {}
    guessed: dict[str, str] = {}
    if found.isdisjoint((config.image_column, *IMAGE_NAMES)):
        images = [name for name in found if _is_file(cells_of(rows, name))]
        guessed["image_column"] = only_column(config.train_path, "images", "dataset.image_column", images)
    if config.caption_column not in found:
        others = found - {config.image_column, *IMAGE_NAMES, *guessed.values()}
        texts = text_columns(rows, others)
        guessed["caption_column"] = only_column(config.train_path, "texts", "dataset.caption_column", texts)
    return guessed


def only_column(path: str, what: str, key: str, names: Sequence[str]) -> str:
    """The only one of the columns that can be that of `what`.

    Raises:
        DataError: there is none or there are several, with the key or option that names it.
    """
    if len(names) == 1:
        return names[0]
    which = f"could be any of {listed(map(printable, sorted(names)), 'and')}" if names else "is not plain to see"
    raise DataError(f"{path}: the column of {what} {which}; name it with {key}")


def text_columns(rows: Sequence[Cells], names: Iterable[str]) -> list[str]:
    """Those of the columns that hold texts; of several those of sentences, if there are any."""
    texts = [name for name in names if _is_text(cells_of(rows, name))]
    sentences = [name for name in texts if _holds_sentences(cells_of(rows, name))]
    return texts if len(texts) == 1 else sentences or texts


def _first_rows(config: DatasetConfig) -> list[Cells]:
    match kind_of(config, config.train_path):
        case "parquet":
            from impresa.data.sources.parquet_files import places_of

            return _rows_of_parquet(places_of(config.train_path)[0])
        case "hub" if config.streaming and is_on_hub(config.train_path):
            from impresa.data.hub_files import parquet_on_hub
            from impresa.data.shards.places import files_at

            return _rows_of_parquet(files_at(parquet_on_hub(config.train_path).addresses[:1])[0])
        case "hub":
            from impresa.data.sources.hub import first_rows

            return list(first_rows(config.train_path, ROWS))
        case "webdataset":  # whose members say by their suffix what they are
            return []
    file = _table_of(expanded(config.train_path))
    if file is None or file.name.lower().endswith(TOKEN):  # the latter has no names of columns
        return []
    with open_table(file, config, {config.image_column, config.caption_column, *IMAGE_NAMES}) as table:
        return [cells for _, cells in islice(table.rows, ROWS) if isinstance(cells, Mapping)]


def _table_of(path: Path) -> Path | None:
    """The table that a folder is read by, or the file itself; of several that are read alike the first."""
    if not path.is_dir():
        return path
    folders = folders_below(path)
    named = list(paths_of(folders, METADATA_NAMES.__contains__))
    others = tables_at_the_top(path, folders)
    return next(iter(named or (others if len(others) == 1 else ())), None)


def _rows_of_parquet(place: Place) -> list[Cells]:
    import pyarrow as pa

    from impresa.data.sources.parquet_files import opened_once

    with (
        suppress(OSError, ValueError, pa.ArrowException),
        opened_once(place) as opened,
    ):  # the source says what is wrong
        if opened.num_row_groups and opened.metadata.row_group(0).total_byte_size <= _MOST_BYTES:
            return next(opened.iter_batches(ROWS, [0])).to_pylist() if opened.metadata.num_rows else []
        return [dict.fromkeys(opened.schema_arrow.names)]
    return []


def cells_of(rows: Iterable[Cells], name: str) -> list[Any]:
    """Those of a column that hold anything; lists of one item as that item."""
    cells = [row.get(name) for row in rows]
    return [cell for cell in cells if cell not in (None, "", [])]


def _is_file(cells: Sequence[Any]) -> bool:
    """True for images: bytes, their names, or Hugging Face's struct of both."""
    return bool(cells) and all(map(_may_be_image, cells))


def _may_be_image(cell: Any) -> bool:
    if isinstance(cell, Mapping):
        return "bytes" in cell and _may_be_image(cell["bytes"] or cell.get("path"))
    if isinstance(cell, bytes):
        return not cell.startswith((b"RIFF", b"fLaC", b"OggS", b"ID3")) or cell[8:12] == b"WEBP"
    return isinstance(cell, str) and cell.lower().endswith(tuple(image_suffixes()))


def _is_text(cells: Sequence[Any]) -> bool:
    """True for texts or lists of texts that are neither names of files nor numbers."""
    texts = [text for cell in cells for text in (cell if isinstance(cell, list) else [cell])]
    files = (*image_suffixes(), *SOUND_SUFFIXES)
    return (
        bool(texts)
        and all(isinstance(text, str) and not text.lower().endswith(files) and "://" not in text for text in texts)
        and any(any(map(str.isalpha, text)) for text in texts)
    )


def _holds_sentences(cells: Sequence[Any]) -> bool:
    """True where most of the texts have several words."""
    texts = [text for cell in cells for text in (cell if isinstance(cell, list) else [cell])]
    return 2 * sum(len(text.split()) > 1 for text in texts) > len(texts)
