"""Pictures and folders of them, for several tests of the data part."""

from __future__ import annotations

import json
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
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


def gradient(width: int, height: int) -> Image.Image:
    """Red grows to the right, green downwards: every region can be told."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = np.linspace(0, 255, width)[None, :]
    pixels[..., 1] = np.linspace(0, 255, height)[:, None]
    return Image.fromarray(pixels)


def photo(width: int, height: int) -> Image.Image:
    """Smooth noise with detail at several scales, as photographs have."""
    generator = np.random.default_rng(0)
    total = np.zeros((height, width, 3))
    for scale in (4, 16, 64):
        coarse = generator.integers(0, 255, (height // scale, width // scale, 3), dtype=np.uint8)
        total += np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    return Image.fromarray((total / 3).astype(np.uint8))
