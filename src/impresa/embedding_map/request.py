"""Refusals of a map before anything is loaded; needs no torch."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from impresa.errors import ConfigError, DataError

Method = Literal["pca", "tsne"]


def check_method(method: Method) -> None:
    """Refuse a method whose library is not installed."""
    if method == "tsne" and find_spec("openTSNE") is None:
        raise ConfigError("--method: tsne needs openTSNE (pip install 'impresa[map]'); install it, or use pca")


def check_folder(folder: Path, *, force: bool) -> None:
    """Refuse a folder that is not empty, unless its map may be replaced.

    Raises:
        DataError: names the folder and the fix.
    """
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder}: is a file; name a folder with --out")
    if folder.is_dir() and any(folder.iterdir()) and not force:
        raise DataError(f"{folder}: is not empty; name another folder with --out, or add --force to replace its map")
