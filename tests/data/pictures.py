"""Pictures and folders of them, for several tests of the data part."""

from __future__ import annotations

import json
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image


def png(number: int, width: int = 8, height: int = 8) -> bytes:
    """A picture whose colour says which it is."""
    file = BytesIO()
    Image.new("RGB", (width, height), (number % 256, number // 256, 7)).save(file, "PNG")
    return file.getvalue()


def write_jsonl(folder: Path, rows: Iterable[dict[str, Any] | str], name: str = "metadata.jsonl") -> Path:
    """The folder, with a table of these rows and pictures 0.png to 9.png."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(10):
        (folder / f"{number}.png").write_bytes(png(number))
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    (folder / name).write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return folder


def numbered(count: int) -> list[dict[str, str]]:
    """Rows for the first pictures, of which there are ten."""
    return [{"image": f"{number % 10}.png", "caption": f"number {number}"} for number in range(count)]
