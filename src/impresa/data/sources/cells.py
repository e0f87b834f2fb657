"""The files of images and sounds that the cells of a table hold or name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any

from impresa.data.text import is_missing, plain


def files_in(cell: Any) -> list[Any]:
    """The files of a cell that are not missing: of a list (also a printed one) all of them, out of their structs."""
    if isinstance(cell, str) and cell.lstrip().startswith("["):
        with suppress(ValueError):
            cell = plain(cell)
    if isinstance(cell, list | tuple):
        return [file for item in cell for file in files_in(item)]
    file = cell.get("bytes") or cell.get("path") if isinstance(cell, dict) else cell
    return [] if is_missing(file) else [file]


def one_file(cell: Any) -> Any:
    """The file of a cell; several are a list, and None is none."""
    files = files_in(cell)
    return files if len(files) > 1 else next(iter(files), None)


def linked(keys: Iterable[tuple[str, ...]]) -> Iterator[str]:
    """For each item one of its keys: the same for all items that share one, directly or by way of others."""
    items = list(keys)
    parent: dict[str, str] = {}

    def root(key: str) -> str:
        while (above := parent.setdefault(key, key)) != key:
            parent[key] = key = parent[above]  # halving the path
        return key

    for first, *others in items:
        for other in others:
            low, high = sorted((root(first), root(other)))
            parent[high] = low
    return (root(first) for first, *_ in items)
