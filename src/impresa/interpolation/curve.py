"""Two figures along the line, and the place on it that is chosen."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from impresa.errors import DataError
from impresa.evaluation.figures import figures, kind_of
from impresa.evaluation.results import Evaluation
from impresa.reports.tables import Row, Table, signed

METRICS = ("zero_shot_accuracy", "recall_at_1")
"""The first that data allow: classification where they have labels, else retrieval, both directions' mean."""


@dataclass(frozen=True)
class Measured:
    """Data, and the name of the figure that they are judged by."""

    data: str
    metric: str

    @property
    def label(self) -> str:
        """For tables and charts."""
        return f"{kind_of(self.metric).label} on {self.data}"


@dataclass(frozen=True)
class Point:
    """The figures at one place of the line."""

    alpha: float
    new: float
    old: float | None


@dataclass(frozen=True)
class Curve:
    """All places that were measured, from 0 to 1, and those figures on test data that are reported."""

    before: str
    after: str
    new: Measured
    old: Measured | None
    keep: float
    points: tuple[Point, ...]
    test: Measured
    tested: dict[float, float]
    """By alpha: that of `before`, that of the chosen place, that of `after`."""

    @property
    def chosen(self) -> Point:
        return choose(self.points, self.keep)

    @property
    def rule(self) -> str:
        """How the place was chosen."""
        if self.old is None:
            return f"the best {self.new.label}"
        return f"the best {self.new.label} that keeps {self.keep:.0%} of {self.old.label}"

    def to_json(self) -> str:
        """The file of the curve."""
        chosen = {"rule": self.rule, "alpha": self.chosen.alpha}
        tested = {f"{alpha:g}": figure for alpha, figure in self.tested.items()}
        return json.dumps({**asdict(self), "tested": tested, "chosen": chosen}, ensure_ascii=False, indent=2) + "\n"

    def to_csv(self) -> str:
        """A row for each place."""
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(("alpha", "new", "old", "test", "chosen"))
        for point in self.points:
            tested = self.tested.get(point.alpha, "")
            old = "" if point.old is None else point.old
            rows.writerow((point.alpha, point.new, old, tested, int(point == self.chosen)))
        return text.getvalue()

    def table(self) -> Table:
        """For the terminal, the chosen place named `chosen`."""
        first, kinds = self.points[0], [kind_of(measured.metric) for measured in (self.new, self.old) if measured]

        def row(point: Point) -> Row:
            values = [(point.new, first.new), (point.old, first.old)][: len(kinds)]
            cells = [
                f"{value:{kind.format}} ({signed(value - start, kind)})"
                for kind, (value, start) in zip(kinds, values, strict=True)
                if value is not None and start is not None
            ]
            tested = self.tested.get(point.alpha)
            cells.append("" if tested is None else format(tested, kind_of(self.test.metric).format))
            return Row(f"{point.alpha:g}", tuple(cells))

        labels = [measured.label for measured in (self.new, self.old, self.test) if measured]
        return Table("alpha", tuple(labels), {"": tuple(map(row, self.points))})


def choose(points: Sequence[Point], keep: float) -> Point:
    """The best new figure among the places that keep a share of the old figure at alpha 0; of equals the nearest to it.

    Args:
        points: from alpha 0 on.
        keep: the share; places without an old figure all keep it.
    """
    first = points[0]
    kept = [p for p in points if p.old is None or first.old is None or p.old >= keep * first.old]
    return max(kept, key=lambda point: (point.new, -point.alpha))


def metric_of(evaluation: Evaluation) -> str:
    """The figure that data are judged by. Raises `DataError` if they allow none."""
    found = figures(evaluation)
    for name in METRICS:
        if name in found:
            return name
    raise DataError(f"{evaluation.data}: has neither captions nor two classes of images; nothing can be compared on it")
