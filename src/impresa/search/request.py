"""Refusals of a file of vectors before anything is loaded; needs no torch."""

from __future__ import annotations

import os
from pathlib import Path

from impresa.errors import DataError

PARQUET, NUMPY = ".parquet", ".npy"


def sidecar_of(path: Path) -> Path:
    """The JSON file beside a `.npy` file, with what its rows are."""
    return path.with_suffix(".json")


def check_out(path: Path, *, force: bool) -> None:
    """Refuse a file that cannot be written, or that is there, unless it may be replaced.

    Raises:
        DataError: names the file and the fix.
    """
    if path.suffix not in (PARQUET, NUMPY):
        raise DataError(f"--out: {path} is neither a {PARQUET} nor a {NUMPY} file; give it one of these endings")
    if not path.parent.is_dir():
        raise DataError(f"{path.parent}: is no folder; make it, or name a file in another with --out")
    if not os.access(path.parent, os.W_OK):
        raise DataError(f"{path.parent}: cannot be written; name a file in another folder with --out")
    for file in (path, sidecar_of(path)) if path.suffix == NUMPY else (path,):
        if file.is_dir():
            raise DataError(f"{file}: is a folder; name another file with --out")
        if os.path.lexists(file) and not force:
            raise DataError(f"{file}: is there already; name another file with --out, or add --force to replace it")
