"""Reading JSON, and plain text, that another program may have written: bounded, JSON checked against a type."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from impresa.errors import CheckpointError

T = TypeVar("T")
Count = Annotated[int, Field(ge=0, le=2**63 - 1)]
"""A whole number from 0 that numpy and torch can hold."""
MAX_BYTES = 64 << 20
"""Of a file. A gallery, the largest that is written, takes a few hundred kilobytes."""
MAX_DEPTH = 64
"""Of values within values, which those who read them follow by recursion."""
_TOO_DEEP = "values are nested too deeply"
RESTORE = "restore the run from a copy"


def read_json(path: Path, kind: type[T], *, fix: str = RESTORE) -> T:
    """The value of type `kind`, such as a dataclass with bounds in its annotations, that a JSON file of a run holds.

    Args:
        path: the file.
        kind: the type; values are not converted, but that whole numbers may stand for fractions and lists for tuples.
        fix: end of an error line.

    Raises:
        CheckpointError: the file is missing or too large, is no JSON, is nested too deeply, or holds something else.
    """
    try:
        value: T = _adapter(kind).validate_json(_content(path, fix), strict=True)  # type: ignore[arg-type]
    except ValidationError as error:
        raise CheckpointError(f"{path}: {first_fault(error)}; {fix}") from error
    return value


def read_text(path: Path) -> str:
    """A text that a run adds to, such as its metrics; empty if there is no such file. Bytes that are not UTF-8 are
    replaced.

    Raises:
        CheckpointError: the file is too large, or cannot be read.
    """
    return _content(path, "remove it").decode("utf-8", errors="replace") if path.is_file() else ""


def _content(path: Path, fix: str) -> bytes:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise CheckpointError(f"{path}: is larger than {MAX_BYTES >> 20} MiB; {fix}")
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error}); {fix}") from error


def parse_json(text: str | bytes) -> Any:
    """The values of a JSON text; anything else, and values nested deeper than `MAX_DEPTH`, are a ValueError."""
    try:
        values = json.loads(text)
    except RecursionError as error:
        raise ValueError(_TOO_DEEP) from error
    level, depth = [values], 0
    while level := [value for parent in level for value in _inside(parent)]:
        depth += 1
        if depth > MAX_DEPTH:
            raise ValueError(_TOO_DEEP)
    return values


def _inside(parent: Any) -> Iterable[Any]:
    """Values of a mapping or a list that may have values themselves."""
    values = parent.values() if isinstance(parent, dict) else parent if isinstance(parent, list) else ()
    return [value for value in values if isinstance(value, dict | list)]


def first_fault(error: ValidationError) -> str:
    """The first fault that pydantic finds, in one line."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    key = ".".join(map(str, first["loc"]))
    return (f"`{key}`: " if key else "") + " ".join(first["msg"].split())


_adapter = cache(TypeAdapter)
