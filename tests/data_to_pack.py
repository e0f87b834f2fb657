"""Data in every form, as tests pack them, and the command that does."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from impresa.cli.main import main
from pictures import photo, png
from shards_on_disk import tar
from sounds_on_disk import wav


def picture(number: int, kind: str = "PNG") -> bytes:
    """Pictures that all differ much."""
    file = BytesIO()
    photo(64, 64).rotate(36 * number).convert("RGB").save(file, kind, quality=90)
    return file.getvalue()


def rows(count: int = 10) -> list[dict[str, Any]]:
    return [
        {
            "caption": ["one\ntwo", f"number {n}"] if n == 3 else f"number {n}",
            "label": n if n % 2 else f"class {n}",
            "question": ["how many?", "why?"] if n % 2 else "what?",
            "answer": [["yes", "no"], 3] if n % 2 else (2.0 if n % 4 else "ten"),
            "kind": None if n == 4 else "a" if n % 2 == 0 else ["a", "b"],
            "extra": {"deep": [n, None]},
            "number": n / 3,
            "note": "é" * n,
        }
        for n in range(count)
    ]


def folder_of(folder: Path) -> str:
    folder.mkdir()
    table = []
    for number, row in enumerate(rows()):
        (folder / f"{number}.jpg").write_bytes(picture(number, "JPEG"))
        (folder / f"{number}.wav").write_bytes(wav(300 + number, 0.1))
        table.append({"image": f"{number}.jpg", **({"audio": f"{number}.wav"} if number != 5 else {}), **row})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, table)))
    return str(folder)


def sidecars_of(folder: Path) -> str:
    folder.mkdir()
    for number in range(10):
        (folder / f"{number}.png").write_bytes(picture(number))
        (folder / f"{number}.txt").write_text(f"number {number}\nother")
    return str(folder)


def parquet_of(folder: Path) -> str:
    folder.mkdir()
    table = [
        {
            "image": {"bytes": picture(number, "WEBP"), "path": "x.webp"},
            "caption": f"number {number}",
            "label": number % 3,
            "messages": [{"role": "user", "content": "a?"}, {"role": "assistant", "content": f"{number}"}],
            "vector": [0.5, number],
            "left": png(number),
        }
        for number in range(10)
    ]
    features = {"label": {"names": ["x", "y", "z"], "_type": "ClassLabel"}}
    schema = pa.Table.from_pylist(table).schema.with_metadata(
        {"huggingface": json.dumps({"info": {"features": features}})}
    )
    pq.write_table(pa.Table.from_pylist(table, schema), folder / "a.parquet", row_group_size=4)
    return str(folder)


def saved_of(folder: Path) -> str:
    """The rows of the parquet files, as `save_to_disk` of the datasets library writes them."""
    datasets = pytest.importorskip("datasets")
    parquet = parquet_of(folder.with_name("parquet"))
    datasets.Dataset.from_parquet(f"{parquet}/a.parquet", cache_dir=str(folder.with_name("prepared"))).save_to_disk(
        str(folder)
    )
    return str(folder)


def shards_of(folder: Path) -> str:
    folder.mkdir()
    samples = {
        f"{number:03d}": {
            "png": picture(number),
            "txt": f"number {number}".encode(),
            "cls": b"3",
            "json": json.dumps({"question": "q?", "answer": f"a {number}", "more": [1, "x"]}).encode(),
            "left.jpg": b"left",
            "pyd": b"pickle",
        }
        for number in range(10)
    }
    (folder / "0.tar").write_bytes(tar(samples))
    return str(folder)


def pack(path: str, out: Path, *words: str) -> int:
    return main(["data", "pack", path, "--out", str(out), "--shard-size", "20KB", *words])
