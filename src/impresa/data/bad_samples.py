"""The list of samples that could not be used, and the point at which there are too many of them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from impresa.errors import DataError


class BadSampleList:
    """The bad samples of one split, each named once, in a file that all processes of a run share.

    Lines are appended whole, in one write, so that several processes can write to one file; each reads what the others
    have added before it counts. Without a file the list lives in this process.

    Args:
        path: `bad_samples.jsonl` of the run; lines of an earlier part of the run are counted. None for no file.
        split: name of the split, stored with each line.
        num_samples: samples of the split, good and bad.
        max_fraction: part of them that may be bad.
    """

    def __init__(self, path: Path | None, split: str, num_samples: int, max_fraction: float) -> None:
        self._path = path
        self._split = split
        self._num_samples = num_samples
        self._max_fraction = max_fraction
        self._reasons: dict[str, str] = {}
        self._offset = 0
        if self._read_new_lines():
            self._append("\n")  # a run that was killed while it wrote left half a line; end it, and read it too
            self._read_new_lines()

    def __len__(self) -> int:
        return len(self._reasons)

    def add(self, samples: Iterable[tuple[str, str]]) -> None:
        """Add (id, reason) pairs; those that are listed already change nothing.

        Raises:
            DataError: more than the allowed part of the split is bad.
        """
        new = {id: reason for id, reason in samples if id not in self._reasons}
        if not new:
            return
        rows = [{"split": self._split, "id": id, "reason": reason} for id, reason in new.items()]
        self._append("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        self._read_new_lines()
        self._reasons.update(new)
        self._stop_if_too_many()

    def _append(self, text: str) -> None:
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("ab", buffering=0) as file:
            file.write(text.encode("utf-8", errors="replace"))

    def _read_new_lines(self) -> bytes:
        """Take in what the file has gained; returns the half line at its end."""
        if self._path is None or not self._path.exists():
            return b""
        with self._path.open("rb") as file:
            file.seek(self._offset)
            lines = file.read().splitlines(keepends=True)
        half = lines.pop() if lines and not lines[-1].endswith(b"\n") else b""
        self._offset += sum(map(len, lines))
        for line in lines:
            with suppress(ValueError):  # what was half a line is no JSON
                row = json.loads(line)
                if row["split"] == self._split:
                    self._reasons[row["id"]] = row["reason"]
        return half

    def _stop_if_too_many(self) -> None:
        allowed = int(self._max_fraction * self._num_samples)
        if len(self) <= allowed:
            return
        id, reason = next(reversed(self._reasons.items()))
        where = f"; all are listed in {self._path}" if self._path else ""
        raise DataError(
            f"{self._split} data: {len(self)} of {self._num_samples} samples cannot be used and {allowed} are allowed, "
            f"for example {id}: {reason}{where}; fix them or raise dataset.max_bad_fraction"
        )
