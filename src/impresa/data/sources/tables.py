"""Tables in text files: jsonl, json and csv, as numbered rows."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from impresa.errors import DataError

JSON = ".json"

NumberedRow = tuple[int, dict[str, Any] | str]
"""Number of the line (in json: of the row), and its cells by column, or the reason why they cannot be read."""


def read_table(file: Path) -> Iterator[NumberedRow]:
    """All rows of a file in the format of its suffix.

    Raises:
        DataError: the file is malformed as a whole.
    """
    return {".csv": _read_csv, JSON: _read_json}.get(file.suffix.lower(), _read_jsonl)(file)


def _read_jsonl(file: Path) -> Iterator[NumberedRow]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                values = json.loads(line.decode("utf-8-sig"))
            except ValueError as error:
                yield number, f"not a line of JSON ({error})"
                continue
            yield number, values if isinstance(values, dict) else "not a JSON object"


def _read_json(file: Path) -> Iterator[NumberedRow]:
    try:
        rows = json.loads(file.read_bytes().decode("utf-8-sig"))
    except ValueError as error:
        raise DataError(f"{file}: is no JSON ({error}); fix the file") from error
    if not isinstance(rows, list):
        raise DataError(f"{file}: is no list of rows; write one JSON object per image into a list")
    for number, values in enumerate(rows, start=1):
        yield number, values if isinstance(values, dict) else "not a JSON object"


def _read_csv(file: Path) -> Iterator[NumberedRow]:
    csv.field_size_limit(1 << 24)  # captions of a model can be longer than the standard library expects
    with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
        reader = csv.DictReader(lines)
        try:
            for values in reader:
                if None in values or None in values.values():
                    yield reader.line_num, "the row does not have as many cells as the header"
                else:
                    yield reader.line_num, {key: _list_or_text(cell) for key, cell in values.items()}
        except csv.Error as error:
            raise DataError(f"{file}: line {reader.line_num} is no csv ({error}); fix the file") from error


def _list_or_text(cell: str) -> Any:
    """A cell that is a JSON list becomes a list."""
    with suppress(ValueError):
        return json.loads(cell) if cell.startswith("[") else cell
    return cell
