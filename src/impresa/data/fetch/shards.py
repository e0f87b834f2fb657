"""The shards of a fetch: the samples of an address, and going on where the ledger says that the last one ended."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from impresa.config.dataset import DatasetConfig
from impresa.data.fetch.content import Picture
from impresa.data.fetch.ledger import Ledger, Place
from impresa.data.fetch.table import CAPTION
from impresa.data.shards.places import INDEX_SUFFIX
from impresa.data.shards.tar import BLOCK
from impresa.data.shards.writer import Placed, ShardWriter, part_of, shard_name
from impresa.files import naming
from impresa.json_files import parse_json

logger = logging.getLogger(__name__)

_END_BYTES = 2 * BLOCK
"""Of the mark of an archive's end."""
_JOINED = (CAPTION, DatasetConfig.question_column, DatasetConfig.answer_column, DatasetConfig.kind_column)
"""Columns of which one image may have several values, each in a row of its own."""


def samples_of(rows: Sequence[str]) -> list[str]:
    """The columns of each sample of a picture, as JSON, by those of the table's rows with its address.

    Rows that differ in nothing but caption, question, answer and kind are one sample with lists of these. Others, such
    as whole dialogues, are samples of their own.
    """
    if len(rows) == 1:
        return list(rows)
    alike: dict[str, list[dict[str, object]]] = {}
    for row in rows:
        cells = parse_json(row)
        joined = [name for name in _JOINED if name in cells]
        rest = {name: value for name, value in cells.items() if name not in joined}
        alike.setdefault(json.dumps([joined, rest], sort_keys=True), []).append(cells)
    return [json.dumps(_joined(cells)) for cells in alike.values()]


def _joined(rows: Sequence[dict[str, object]]) -> dict[str, object]:
    if len(rows) == 1:
        return rows[0]
    return rows[0] | {name: [row[name] for row in rows] for name in _JOINED if name in rows[0]}


def add_picture(writer: ShardWriter, id: str, picture: Picture, rows: Sequence[str]) -> tuple[Place, Place]:
    """Write the samples of an address; returns where the first begins and the last ends."""
    placed = [
        writer.add(id if number == 0 else f"{id}-{number}", {picture.suffix: picture.content, "json": cells.encode()})
        for number, cells in enumerate(samples_of(rows))
    ]
    return Place(_number(placed[0]), placed[0].offset), Place(
        _number(placed[-1]), placed[-1].offset + placed[-1].num_bytes
    )


def open_writer(folder: Path, ledger: Ledger, max_bytes: int) -> ShardWriter:
    """A writer that goes on behind all that the ledger knows; what a killed process has written behind that is cut off.

    What the ledger knows and the disk may not have, because shards were deleted or the machine has lost its power, is
    fetched again.
    """
    with naming(folder):
        if lost := ledger.forget_unsynced():
            logger.warning("%s: the last %d files may not have reached the disk and are fetched again", folder, lost)
        for number in ledger.shards():
            if not _is_there(folder, number):
                lost = ledger.forget(number)
                logger.warning("%s: shard %s is gone; its %d files are fetched again", folder, shard_name(number), lost)
        last = ledger.last_place()
        _remove(folder, 0 if last is None else last.shard + 1)
        if last is None:
            return ShardWriter(folder, max_bytes)
        for number in ledger.shards():
            if number < last.shard and not (folder / shard_name(number)).exists():  # its new name was lost
                os.replace(part_of(folder, number), folder / shard_name(number))
        path, part = folder / shard_name(last.shard), part_of(folder, last.shard)
        if path.exists() and path.stat().st_size == last.offset + _END_BYTES:
            return ShardWriter(folder, max_bytes, first=last.shard + 1)
        if path.exists():  # it has samples that the ledger does not know
            os.replace(path, part)
            Path(f"{path}{INDEX_SUFFIX}").unlink(missing_ok=True)
    return ShardWriter(folder, max_bytes, first=last.shard, kept_bytes=last.offset)


def _is_there(folder: Path, number: int) -> bool:
    return (folder / shard_name(number)).exists() or part_of(folder, number).exists()


def _remove(folder: Path, number: int) -> None:
    """Remove a shard that the ledger does not know."""
    path = folder / shard_name(number)
    for file in (path, part_of(folder, number), Path(f"{path}{INDEX_SUFFIX}")):
        file.unlink(missing_ok=True)


def _number(placed: Placed) -> int:
    return int(Path(placed.shard).stem)
