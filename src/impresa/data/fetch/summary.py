"""A few numbers beside the shards, by which a training run says what was not fetched."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from impresa.data.disk import read_regular
from impresa.files import write_atomic
from impresa.json_files import parse_json

NAME = "fetch.json"
_MOST_BYTES = 1 << 20


@dataclass(frozen=True)
class Summary:
    """How far the fetch into a folder has come."""

    num_rows: int
    """Of the table."""
    num_rows_fetched: int

    def said(self) -> str | None:
        """A line about the rows that are missing; None if none is."""
        missing = self.num_rows - self.num_rows_fetched
        if missing <= 0:
            return None
        return f"{missing} of {self.num_rows} rows of the table are not fetched"


def write_summary(folder: Path, summary: Summary) -> None:
    """Write it beside the shards."""
    write_atomic(folder / NAME, json.dumps({"rows": summary.num_rows, "rows_fetched": summary.num_rows_fetched}) + "\n")


def missing_rows(folder: Path) -> str | None:
    """What `Summary.said` has to say of a folder; None for one that nothing was fetched into."""
    try:
        found = parse_json(read_regular(folder / NAME, _MOST_BYTES))
        return Summary(int(found["rows"]), int(found["rows_fetched"])).said()
    except (OSError, ValueError, LookupError, TypeError, OverflowError):
        return None
