"""The metrics of a training run as curves, read from `metrics.csv`."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path

from impresa.run_dir.layout import METRICS


@dataclass(frozen=True)
class Curve:
    """One metric over optimizer steps."""

    steps: tuple[float, ...]
    values: tuple[float, ...]


def read_history(run_dir: Path) -> dict[str, Curve]:
    """All numeric columns of the run's metrics that have a value, by name; nothing for a run without metrics.

    A cell that is empty, not finite or cut off is left out, as is a line without a step.
    """
    path = run_dir / METRICS
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        rows = list(csv.DictReader(file))
    points: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        step = _number(row.get("step"))
        for name, cell in row.items():
            value = _number(cell)
            if name != "step" and step is not None and value is not None:
                points.setdefault(name, []).append((step, value))
    return {name: Curve(*zip(*sorted(found), strict=True)) for name, found in points.items()}


def _number(cell: object) -> float | None:
    try:
        value = float(cell)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None
