"""How a study gets on, on standard error: one table on a terminal, else a line for each run that begins or ends."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from impresa.ablation.plan import PlannedRun
from impresa.ablation.runner import Running, Standing, label
from impresa.foreign_text import printable
from impresa.run_dir.layout import METRICS

REFRESH_S = 1.0
_TAIL_BYTES = 16_384
_HEADER_BYTES = 65_536


def duration(seconds: float) -> str:
    """Time for people, to the second."""
    return str(timedelta(seconds=round(seconds)))


class Progress:
    """A `View` of a study. As a context, it takes the table away at its end.

    Args:
        console: on standard error.
        study_dir: folder of the study.
        standing: how far the runs have come before.
        num_jobs: runs at once.
    """

    def __init__(self, console: Console, study_dir: Path, standing: Standing, num_jobs: int) -> None:
        self.estimate: float | None = None
        """Seconds of a run, until one has finished."""
        self._console, self._study_dir, self._num_jobs = console, study_dir, num_jobs
        self._done, self._failed, self._left = map(len, (standing.done, standing.damaged, standing.to_do))
        self._total = self._done + self._failed + self._left
        self._since: dict[str, float] = {}
        """When the runs that are being trained were started, by folder."""
        self._durations: list[float] = []
        self._said = ""
        self._drawn = 0.0
        self._live: Live | None = None

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def started(self, run: PlannedRun) -> None:
        self._since[run.folder] = time.monotonic()
        self._said = ""
        if self._live is None:
            self._line(f"{label(run)}: started")

    def finished(self, run: PlannedRun, seconds: float | None) -> None:
        self._end(run)
        self._done += 1
        if seconds is not None:
            self._durations.append(seconds)
        took = "" if seconds is None else f" in {duration(seconds)}"
        self._line(f"{label(run)}: finished{took}{self._time_left()}")

    def failed(self, run: PlannedRun, reason: str) -> None:
        self._end(run)
        self._failed += 1
        self._line(f"{label(run)}: failed: {reason}{self._time_left()}", style="red")

    def waiting(self, reason: str) -> None:
        if reason != self._said:
            self._said = reason
            self._line(reason)

    def tick(self, running: Sequence[Running], num_waiting: int) -> None:
        if self._live is None or time.monotonic() - self._drawn < REFRESH_S:
            return
        self._drawn = time.monotonic()
        self._live.update(self._table(running, num_waiting), refresh=True)

    def seconds_left(self) -> float | None:
        """Time for the runs that are left, by the mean of those that have finished here, else by the estimate."""
        mean = sum(self._durations) / len(self._durations) if self._durations else self.estimate
        if mean is None:
            return None
        now = time.monotonic()
        running = sum(max(mean - (now - since), 0) for since in self._since.values())
        num_waiting = max(self._left - len(self._since), 0)
        return (running + num_waiting * mean) / min(self._num_jobs, max(self._left, 1))

    def _end(self, run: PlannedRun) -> None:
        self._since.pop(run.folder, None)
        self._left -= 1

    def _time_left(self) -> str:
        seconds = self.seconds_left()
        return "" if seconds is None or not self._left else f"; about {duration(seconds)} left"

    def _line(self, text: str, style: str = "") -> None:
        number = f"[{self._done + self._failed}/{self._total}]"
        self._console.print(Text(f"{number} {printable(text)}", style=style), soft_wrap=True)

    def _table(self, running: Sequence[Running], num_waiting: int) -> Group:
        now = time.monotonic()
        numbers = f"{self._total} runs: {self._done} done, {self._failed} failed, {len(running)} running"
        table = Table(box=None, pad_edge=False)
        table.add_column("running", no_wrap=True, overflow="ellipsis")
        for title in ("step", "loss", "time"):
            table.add_column(title, justify="right", no_wrap=True)
        for item in running:
            step, loss = last_metrics(self._study_dir / item.run.folder)
            table.add_row(Text(printable(label(item.run))), step, loss, duration(now - item.since))
        return Group(Text(f"{numbers}, {num_waiting} waiting{self._time_left()}"), table)


def last_metrics(run_dir: Path) -> tuple[str, str]:
    """Step and training loss of the last line of a run's metrics that has a loss; empty texts before that."""
    with suppress(OSError, csv.Error, ValueError), (run_dir / METRICS).open("rb") as file:
        header = file.readline(_HEADER_BYTES).decode()
        start = max(file.seek(0, io.SEEK_END) - _TAIL_BYTES, len(header))
        file.seek(start)
        lines = file.read().decode(errors="replace").splitlines()[start > len(header) :]
        for row in reversed(list(csv.DictReader([header, *lines]))):
            if row.get("train_loss"):
                return printable(str(row["step"])), f"{float(row['train_loss']):.3f}"
    return "", ""
