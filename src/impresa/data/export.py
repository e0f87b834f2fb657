"""The embedded data set as files: a folder of images with `metadata.jsonl`, or parquet."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import asdict
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from impresa.config.dataset import ShapesConfig
from impresa.data.shapes.scenes import Split
from impresa.data.sources import Reading
from impresa.data.sources.shapes import ShapesSource
from impresa.errors import DataError
from impresa.files import replacing_folder

FileFormat = Literal["folder", "parquet"]
Track = Callable[[Iterable[int], str], Iterable[int]]

_SPLITS: tuple[Split, ...] = ("train", "val", "test")
_ROWS_PER_GROUP = 512


def export_shapes(
    config: ShapesConfig,
    folder: Path,
    *,
    image_size_px: int,
    file_format: FileFormat = "folder",
    force: bool = False,
    track: Track = lambda indices, _: indices,
) -> dict[Split, Path]:
    """Write the splits of `shapes` to `folder/train`, `folder/val` and `folder/test`.

    The splits take their names when all of them are complete; an interrupted export leaves nothing behind.

    Args:
        config: sizes of the splits, and the seed.
        folder: parent of the splits' folders; it is made if it is missing.
        image_size_px: side of the images.
        file_format: `folder` writes PNG files and `metadata.jsonl`; `parquet` one file with the same columns.
        force: replace the three splits of a folder that is not empty.
        track: wraps the iteration over a split's samples, for a progress bar.

    Returns:
        The folder of each split.

    Raises:
        DataError: the folder is not empty and `force` is false, or it cannot be written.
    """
    write = _write_parquet if file_format == "parquet" else _write_folder
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder}: is a file; name a folder to write to")
    is_new = not folder.exists()
    try:
        if not is_new and not force and any(not path.name.startswith(".") for path in folder.iterdir()):
            raise DataError(f"{folder}: is not empty; name another folder, or add --force to replace its splits")
        folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            for split in _SPLITS:
                source = ShapesSource(config, split, image_size_px, Reading(dialogues=True))
                unfinished = stack.enter_context(replacing_folder(folder / split))
                write(unfinished, _rows(source, track(range(len(source)), split)))
    except OSError as error:
        raise DataError(f"{folder}: cannot be written ({error.strerror or error}); name another folder") from error
    finally:
        if is_new:
            with suppress(OSError):  # the folder stays if it is not empty, because the export was complete
                folder.rmdir()
    return {split: folder / split for split in _SPLITS}


def _rows(source: ShapesSource, indices: Iterable[int]) -> Iterator[dict[str, Any]]:
    for index in indices:
        sample = source[index]
        file = BytesIO()
        assert sample.image is not None
        sample.image.save(file, "PNG")
        turns = [dialogue.turns[0] for dialogue in sample.dialogues]
        yield {
            "name": f"{index:06d}.png",
            "image": file.getvalue(),
            "caption": sample.captions[0],
            "question": [turn.question for turn in turns],
            "answer": [turn.answer for turn in turns],
            "kind": [dialogue.kind for dialogue in sample.dialogues],
            "scene": asdict(source.scene(index)),
        }


def _write_folder(folder: Path, rows: Iterator[dict[str, Any]]) -> None:
    (folder / "images").mkdir()
    with (folder / "metadata.jsonl").open("w", encoding="utf-8") as metadata:
        for row in rows:
            path = Path("images", row["name"])
            (folder / path).write_bytes(row["image"])
            columns = {name: value for name, value in row.items() if name not in ("name", "image")}
            metadata.write(json.dumps({"image": path.as_posix(), **columns}) + "\n")


def _write_parquet(folder: Path, rows: Iterator[dict[str, Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = {"caption": pa.string(), **dict.fromkeys(("question", "answer", "kind"), pa.list_(pa.string()))}
    schema = pa.schema({"name": pa.string(), "image": pa.binary(), **texts, "scene": pa.string()})
    with pq.ParquetWriter(folder / "shapes.parquet", schema) as writer:
        while group := [{**row, "scene": json.dumps(row["scene"])} for row in islice(rows, _ROWS_PER_GROUP)]:
            writer.write_table(pa.Table.from_pylist(group, schema))
