"""What `save_to_disk` of the `datasets` library writes, by arrow alone: for tests that do not need the library."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from pictures import png


def numbered(first: int, count: int) -> list[dict[str, Any]]:
    """Rows with an image, captions and the number of a class, as the features of the library store them."""
    return [
        {
            "image": {"bytes": png(number), "path": f"{number}.png"},
            "caption": [f"number {number}", f"the picture {number}"],
            "label": number % 2,
        }
        for number in range(first, first + count)
    ]


def arrow(rows: Sequence[Mapping[str, Any]], each: int = 3, names: Sequence[str] = ("even", "odd")) -> bytes:
    """A stream of batches of `each` rows, with names for the column `label`."""
    features = {"label": {"names": list(names), "_type": "ClassLabel"}}
    about = {"huggingface": json.dumps({"info": {"features": features}})}
    table = pa.Table.from_pylist(list(rows)).replace_schema_metadata(about)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=each)
    return sink.getvalue().to_pybytes()


def save(folder: Path, files: Iterable[bytes]) -> Path:
    """The folder of one split, in so many files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = list(files)
    names = [f"data-{number:05d}-of-{len(files):05d}.arrow" for number in range(len(files))]
    for name, content in zip(names, files, strict=True):
        (folder / name).write_bytes(content)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def save_splits(folder: Path, **splits: Iterable[bytes]) -> Path:
    for split, files in splits.items():
        save(folder / split, files)
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": list(splits)}))
    return folder
