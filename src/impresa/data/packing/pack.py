"""Packing: a look at all rows, their division, and a second pass that writes them.

All is written into a hidden folder beside the one that is asked for, which takes its name at the end. What a killed
process has left there is removed by the next one.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from impresa.config.dataset import DatasetConfig
from impresa.data.bad_rows import without_details
from impresa.data.near_duplicates.fingerprints import Fingerprints
from impresa.data.near_duplicates.groups import Duplicates, find_duplicates
from impresa.data.near_duplicates.record import summary, write_duplicates
from impresa.data.packing.division import divide
from impresa.data.packing.rows import PackRow, Rows, decoded
from impresa.data.packing.shards import ShardPacker
from impresa.data.packing.tables import ColumnTypes, TablePacker
from impresa.data.sources import BadSample
from impresa.data.sources.cells import linked
from impresa.data.sources.groups import numbered
from impresa.errors import DataError
from impresa.files import naming, remove, write_atomic
from impresa.json_files import parse_json
from impresa.run_dir.layout import LOCK
from impresa.run_dir.lock import locked

logger = logging.getLogger(__name__)

PackFormat = Literal["webdataset", "parquet"]
Track = Callable[[Iterable[int], str], Iterable[int]]
PARTS = ("train", "val", "test")
MANIFEST, BAD_ROWS, DUPLICATES = "manifest.json", "bad_rows.jsonl", "duplicates"
_KIND = "impresa pack 1"


class Packer(Protocol):
    """Writes rows into the files of a folder."""

    def add(self, row: PackRow) -> None: ...

    def close(self) -> list[str]: ...

    def abandon(self) -> None: ...


@dataclass(frozen=True)
class PackPlan:
    """What is asked for."""

    name: str
    """Of the data, for the record."""
    file_format: PackFormat
    fractions: tuple[float, float, float]
    """Parts of the rows for train, val and test; their sum is 1."""
    seed: int
    max_bytes: int
    """Of a shard or a parquet file."""


@dataclass(frozen=True)
class Packed:
    """The manifest of a pack: `num_rows` is the sum of the packed and the bad ones."""

    kind: str
    plan: PackPlan
    num_rows: int
    num_packed: Mapping[str, int]
    """Rows of each part."""
    bad: Mapping[str, int]
    """Rows that could not be packed, by reason; `bad_rows.jsonl` has each."""
    left_out: Mapping[str, int]
    """What the source itself leaves out, which are no rows."""
    duplicates: Mapping[str, Any]
    files: Mapping[str, Mapping[str, int]]
    """Bytes of each file, by part and name."""


@dataclass
class _Seen:
    """What the first pass has found; rows are known by their number in the source."""

    numbers: list[int] = field(default_factory=list)
    """Of the good rows."""
    names: list[str] = field(default_factory=list)
    contents: list[bytes] = field(default_factory=list)
    """16 bytes that rows of equal images share, or of equal sounds if they have no image."""
    groups: list[str | None] = field(default_factory=list)
    prints: Fingerprints = field(default_factory=Fingerprints)
    of_image: list[tuple[int, int]] = field(default_factory=list)
    """Of each image the place of its row in `numbers`, and its number among the row's images."""
    bad: list[BadSample] = field(default_factory=list)


def pack(
    rows: Rows,
    config: DatasetConfig,
    folder: Path,
    plan: PackPlan,
    *,
    force: bool = False,
    track: Track = lambda indices, _: indices,
) -> Packed:
    """Write rows to `folder/train`, `folder/val` and `folder/test`, and beside them the manifest and the duplicates.

    Args:
        rows: of any source.
        config: names of the columns.
        folder: new, or empty.
        plan: format and division.
        force: replace an earlier pack; a folder of anything else is never replaced.
        track: wraps the iteration over row numbers, for a progress bar.

    Raises:
        DataError: the folder holds something else, or no row can be packed.
        CheckpointError: another process is packing into it.
        OSError: something cannot be written.
    """
    with _working_folder(folder) as working:
        check_target(folder, force=force)
        types = ColumnTypes(config) if plan.file_format == "parquet" else None
        seen = _look(rows, config, types, track)
        found = find_duplicates(seen.prints)
        parts = divide(_groups(seen, found), seen.contents, plan.fractions, plan.seed)

        def packer(part: Path) -> Packer:
            return (
                ShardPacker(part, plan.max_bytes, config) if types is None else TablePacker(part, plan.max_bytes, types)
            )

        files = _write((rows[number] for number in track(seen.numbers, "writing")), parts, working, packer)

        def picture(number: int) -> Image.Image:
            place, own = seen.of_image[number]
            return decoded(rows[seen.numbers[place]], config.max_image_pixels)[own]

        (working / DUPLICATES).mkdir()
        write_duplicates(working / DUPLICATES, found, _names_of_images(seen), picture)
        if seen.bad:
            lines = (json.dumps({"id": fault.id, "reason": fault.reason}) + "\n" for fault in seen.bad)
            write_atomic(working / BAD_ROWS, "".join(lines))
        done = Packed(
            _KIND,
            plan,
            len(rows),
            {part: int((parts == number).sum()) for number, part in enumerate(PARTS) if part in files},
            dict(Counter(without_details(fault.reason) for fault in seen.bad).most_common()),
            dict(rows.left_out),
            summary(found),
            files,
        )
        write_atomic(working / MANIFEST, json.dumps(asdict(done), indent=2) + "\n")
        _take_name(working, folder)
    return done


def check_target(folder: Path, *, force: bool) -> None:
    """Refuse a folder that holds anything but an earlier pack, and that one without `force`.

    Raises:
        DataError: with the fix.
    """
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise DataError(f"{folder}: is no folder; name a new one")
    if not folder.exists() or not any(folder.iterdir()):
        return
    try:
        is_pack = parse_json((folder / MANIFEST).read_bytes())["kind"] == _KIND
    except (OSError, ValueError, LookupError, TypeError):
        is_pack = False
    if not is_pack:
        raise DataError(f"{folder}: is not empty, and no pack; name a new folder")
    if not force:
        raise DataError(f"{folder}: holds a pack already; name another folder, or add --force to replace it")


@contextmanager
def _working_folder(folder: Path) -> Iterator[Path]:
    """The hidden folder that becomes `folder`; empty at first, and removed after an error."""
    folder = folder.absolute()
    working = folder.with_name(f".{folder.name}.packing")
    with naming(folder), locked(working, "is in use{}; wait for it, or choose another --out"):
        try:
            _clear(working, folder)
            yield working
        except BaseException:
            shutil.rmtree(working, ignore_errors=True)
            raise


def _clear(working: Path, folder: Path) -> None:
    """Remove what a killed process has left, and put back the earlier pack that it was about to replace."""
    if left := [path for path in working.iterdir() if path.name != LOCK]:
        logger.warning("%s: was left by a pack that was killed; it is removed, and all is packed anew", working)
    for path in left:
        remove(path)
    if (old := _replaced(working)).exists():
        remove(old) if folder.exists() else os.replace(old, folder)


def _replaced(working: Path) -> Path:
    """Where an earlier pack lies while the new one takes its name."""
    return working.with_suffix(".old")


def _take_name(working: Path, folder: Path) -> None:
    (working / LOCK).unlink()
    if folder.exists():
        os.replace(folder, _replaced(working))
    os.replace(working, folder)
    remove(_replaced(working))


def _look(rows: Rows, config: DatasetConfig, types: ColumnTypes | None, track: Track) -> _Seen:
    """Read all rows once."""
    seen = _Seen()
    for number in track(range(len(rows)), "reading"):
        try:
            row = rows[number]
            images = decoded(row, config.max_image_pixels)
        except BadSample as fault:
            seen.bad.append(fault)
            continue
        seen.of_image += [(len(seen.numbers), own) for own in range(len(images))]
        names = [seen.prints.add(image, content) for image, content in zip(images, row.images, strict=True)]
        seen.contents.append(names[0] if len(names) == 1 else sha256(b"".join(names) or row.sound or b"").digest()[:16])
        seen.numbers.append(number)
        seen.names.append(row.id)
        seen.groups.append(row.group)
        if types is not None:
            types.look_at(row)
    if not seen.numbers:
        why = seen.bad[0] if seen.bad else "there are none"
        raise DataError(f"data: none of {len(rows)} rows can be packed ({why}); name data with images or sounds")
    return seen


def _groups(seen: _Seen, found: Duplicates) -> NDArray[np.int64]:
    """(N,) a number for each good row, equal for those that stay together: those of one group of images, and those of
    one value of `dataset.group_column`."""
    keys: list[list[str]] = [[] for _ in seen.numbers]
    for (place, _), first in zip(seen.of_image, found.groups.tolist(), strict=True):
        keys[place].append(f"image {first}")
    for of_row, content, group in zip(keys, seen.contents, seen.groups, strict=True):
        of_row.extend([] if of_row else [f"sound {content.hex()}"])
        of_row.extend([] if group is None else [f"group {group}"])
    return numbered(linked(map(tuple, keys)))


def _names_of_images(seen: _Seen) -> list[str]:
    """The name of each image: that of its row, and its number where the row has several."""
    counts = Counter(place for place, _ in seen.of_image)
    return [seen.names[place] + (f"#{own}" if counts[place] > 1 else "") for place, own in seen.of_image]


def _write(
    rows: Iterable[PackRow], parts: NDArray[np.int64], working: Path, packer: Callable[[Path], Packer]
) -> dict[str, dict[str, int]]:
    """Write the good rows, each to its part; the bytes of each file, by part."""
    packers: dict[int, Packer] = {}
    with ExitStack() as stack:
        for part in np.unique(parts).tolist():
            folder = working / PARTS[part]
            folder.mkdir()
            packers[part] = packer(folder)
            stack.callback(packers[part].abandon)
        for part, row in zip(parts.tolist(), rows, strict=True):
            packers[part].add(row)
        finished = {part: packer.close() for part, packer in packers.items()}
    return {PARTS[part]: _sizes(working / PARTS[part], names) for part, names in finished.items()}


def _sizes(folder: Path, names: Sequence[str]) -> dict[str, int]:
    return {name: (folder / name).stat().st_size for name in names}
