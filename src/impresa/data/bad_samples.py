"""The list of samples that could not be used, and the limit of their number."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from impresa.errors import DataError


@dataclass
class BadSampleList:
    """The bad samples of one split, each named once, in a file that all processes of a run share.

    Lines are appended whole, in one write, so that several processes can write to one file; each reads the new lines of
    the others before it counts.
    """

    path: Path | None
    """`bad_samples.jsonl` of the run; lines of an earlier part of the run count. None keeps the list in memory."""
    split: str
    num_samples: int
    """Samples of the split, good and bad."""
    max_fraction: float
    """Fraction of them that may be bad."""
    _reasons: dict[str, str] = field(default_factory=dict, init=False)
    _offset: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if self._read_new_lines():
            self._append("\n")  # a run that was killed while writing left half a line: end it, and read it too
            self._read_new_lines()

    def __len__(self) -> int:
        return len(self._reasons)

    def add(self, samples: Iterable[tuple[str, str]]) -> None:
        """Add (id, reason) pairs that are not listed yet.

        Raises:
            DataError: more than the allowed fraction of the split is bad.
        """
        new = {id: reason for id, reason in samples if id not in self._reasons}
        if not new:
            return
        rows = [{"split": self.split, "id": id, "reason": reason} for id, reason in new.items()]
        self._append("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        self._read_new_lines()
        self._reasons.update(new)
        allowed = int(self.max_fraction * self.num_samples)
        if len(self) > allowed:
            id, reason = next(reversed(self._reasons.items()))
            where = f"; all are listed in {self.path}" if self.path else ""
            raise DataError(
                f"{self.split} data: {len(self)} of {self.num_samples} samples cannot be used and {allowed} are "
                f"allowed, for example {id}: {reason}{where}; fix them or raise dataset.max_bad_fraction"
            )

    def _append(self, text: str) -> None:
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab", buffering=0) as file:
            file.write(text.encode("utf-8", errors="replace"))

    def _read_new_lines(self) -> bytes:
        """Read the lines that were added to the file; returns the half line at its end."""
        if self.path is None or not self.path.exists():
            return b""
        with self.path.open("rb") as file:
            file.seek(self._offset)
            lines = file.read().splitlines(keepends=True)
        half = lines.pop() if lines and not lines[-1].endswith(b"\n") else b""
        self._offset += sum(map(len, lines))
        for line in lines:
            with suppress(ValueError, LookupError, TypeError, RecursionError):  # half a line is no row
                row = json.loads(line)
                if row["split"] == self.split:
                    self._reasons[row["id"]] = row["reason"]
        return half
