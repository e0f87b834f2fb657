"""Tar shards for tests, written by the standard library."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from pictures import png

Files = Mapping[str, bytes]
"""The files of a sample, by what follows the first dot."""


def numbered(first: int, count: int) -> dict[str, Files]:
    """Samples with an image, a caption and a label in JSON."""
    return {
        f"{number:06d}": {
            "png": png(number),
            "txt": f"number {number}".encode(),
            "json": json.dumps({"label": number % 3}).encode(),
        }
        for number in range(first, first + count)
    }


def tar(samples: Mapping[str, Files], mode: str = "w", format: int = tarfile.USTAR_FORMAT) -> bytes:
    """A tar file of samples by key."""
    return tar_of(
        ((f"{key}.{end}", content) for key, files in samples.items() for end, content in files.items()), mode, format
    )


def tar_of(files: Iterable[tuple[str, bytes]], mode: str = "w", format: int = tarfile.USTAR_FORMAT) -> bytes:
    """A tar file of files by name, in order."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode=mode, format=format) as archive:  # type: ignore[call-overload]
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return made.getvalue()


def write_shards(folder: Path, num_shards: int = 3, each: int = 5) -> Path:
    """Shards `0000.tar` and so on, with images that all differ."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(num_shards):
        (folder / f"{shard:04d}.tar").write_bytes(tar(numbered(shard * each, each)))
    return folder
