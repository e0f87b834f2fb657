"""The metrics of a training run as curves and as SVG charts, and matrices as small PNG pictures."""

from __future__ import annotations

import base64
import csv
import io
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup, escape

from impresa.evaluation.preview import DataPreview
from impresa.json_files import read_text
from impresa.run_dir.layout import METRICS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOUR_MAP = "viridis"
TRAIN_LOSS = "train_loss"
CHARTS = {
    "Loss": {TRAIN_LOSS: "training", "val_loss": "validation"},
    "Validation R@1": {
        "val_image_to_text_recall_at_1": "image → text",
        "val_text_to_image_recall_at_1": "text → image",
    },
    "Validation exact match": {"val_exact_match": "greedy answers"},
    "Validation VQA accuracy": {"val_vqa_accuracy": "greedy answers"},
    "Learning rate": {"lr": "learning rate"},
}
"""By title of a chart, the columns of the metrics that it shows and their names in the legend."""
SERIES = ("blue", "orange", "teal", "purple", "pink", "olive", "brown")
"""Names of the page's colours for curves, in the order of use."""
_NAMES = ("text", "soft", "line", "card", "right", "wrong", *SERIES)
PAGE_COLOURS = {name: f"#0101{number:02x}" for number, name in enumerate(_NAMES, start=1)}
"""Colours that stand for the page's own (see report.css), so that a chart follows light and dark mode."""
_MANY_POINTS = 30
LARGEST = 1e30
"""Values from here on are no metrics; axes cannot show much larger ones."""


@dataclass(frozen=True)
class Curve:
    """One metric over optimizer steps."""

    steps: tuple[float, ...]
    values: tuple[float, ...]


def read_history(run_dir: Path) -> dict[str, Curve]:
    """All numeric columns of the run's metrics that have a value, by name; nothing for a run without metrics.

    A cell that is empty, not finite or cut off is left out, as is a line without a step, and all from a damaged one on.
    """
    rows: list[dict[str, str]] = []
    with suppress(csv.Error):  # a damaged line
        rows.extend(csv.DictReader(io.StringIO(read_text(run_dir / METRICS), newline="")))
    points: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        step = _number(row.get("step"))
        for name, cell in row.items():
            value = _number(cell)
            if name != "step" and step is not None and value is not None:
                points.setdefault(name, []).append((step, value))
    return {name: Curve(*zip(*sorted(found), strict=True)) for name, found in points.items()}


def last_step(history: Mapping[str, Curve]) -> int:
    """The number of the last recorded optimizer step, 0 where there is none."""
    return int(max((curve.steps[-1] for curve in history.values()), default=0))


def _number(cell: object) -> float | None:
    try:
        value = float(cell)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return value if abs(value) < LARGEST else None


def history_charts(history: Mapping[str, Curve], preview: DataPreview | None = None) -> dict[str, Markup]:
    """Losses, validation metrics and learning rate by title, as far as they were recorded.

    With a preview of the data the training loss has its chance level, and steps with fewer samples are left out of it.
    """
    level = None if preview is None else preview.loss_at_chance
    if preview is not None and preview.has_short_step and TRAIN_LOSS in history:
        history = {**history, TRAIN_LOSS: full_steps(history[TRAIN_LOSS], preview.steps_per_epoch)}
    found = {title: curves_of(history, columns) for title, columns in CHARTS.items()}
    return {
        title: line_chart(title, curves, level if TRAIN_LOSS in CHARTS[title] else None)
        for title, curves in found.items()
        if curves
    }


def full_steps(curve: Curve, steps_per_epoch: int) -> Curve:
    """A curve without the entries that are of the last step of an epoch alone; the whole of it if there are no others.

    That step has what is left of the data: fewer candidates, and a lower loss by chance alone.
    """
    before = (0.0, *curve.steps)
    kept = [
        (step, value)
        for last, step, value in zip(before, curve.steps, curve.values, strict=False)
        if step % steps_per_epoch or step - last > 1
    ]
    return Curve(*zip(*kept, strict=True)) if kept else curve


def curves_of(history: Mapping[str, Curve], columns: Mapping[str, str]) -> dict[str, Curve]:
    """The recorded ones of some columns, by the name that a legend gives them."""
    return {name: history[column] for column, name in columns.items() if column in history}


def line_chart(title: str, curves: Mapping[str, Curve], chance: float | None = None) -> Markup:
    """An inline SVG of curves over optimizer steps, with a legend if there are several, and a line at chance."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.4, 2.9), layout="constrained")
    series = [PAGE_COLOURS[name] for name in SERIES]
    axes = figure.subplots()
    if chance is not None:
        axes.axhline(
            chance, color=PAGE_COLOURS["soft"], linewidth=1, linestyle="--", label=f"chance in training ({chance:.2f})"
        )
    draw_curves(axes, curves, series=series, ink=PAGE_COLOURS["text"], grid=PAGE_COLOURS["line"])
    return inline_svg(figure, title)


def inline_svg(figure: Figure, title: str) -> Markup:
    """A figure drawn in `PAGE_COLOURS` as an element of a page, with a name of its own that screen readers say."""
    from matplotlib import rc_context

    text = io.StringIO()
    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": title}):
        figure.savefig(text, format="svg", transparent=True, metadata=nothing)
    return _inline(text.getvalue(), title)


def draw_curves(axes: Axes, curves: Mapping[str, Curve], *, series: Sequence[str], ink: str, grid: str) -> None:
    """Draw curves over optimizer steps in the given colours: `ink` for text, `grid` for lines behind."""
    for (name, curve), colour in zip(curves.items(), series, strict=False):
        marker = "" if len(curve.steps) > _MANY_POINTS else "o"
        axes.plot(curve.steps, curve.values, marker=marker, markersize=3.5, linewidth=1.6, color=colour, label=name)
    axes.set_xlabel("optimizer step", color=ink)
    plain(axes, ink=ink, grid=grid)
    axes.margins(x=0.02)
    if len(axes.lines) > 1:
        axes.legend(frameon=False, labelcolor=ink)


def plain(axes: Axes, *, ink: str, grid: str) -> None:
    """Thin lines behind, no frame, no ticks."""
    axes.grid(color=grid, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelcolor=ink)


def matrix_png(matrix: Sequence[Sequence[float]]) -> str:
    """A matrix as a data URI of one pixel per cell, from dark (least) to bright (most)."""
    from matplotlib import colormaps
    from PIL import Image

    values = np.asarray(matrix, dtype=np.float64)
    span = values.max() - values.min()
    shares = (values - values.min()) / span if span else np.zeros_like(values)
    pixels = np.uint8(255 * colormaps[COLOUR_MAP](shares)[..., :3])
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _inline(svg: str, title: str) -> Markup:
    """A whole SVG file as an element of a page: no prologue, no fixed size, names of its own, the page's colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r' (?:width|height)="[^"]*"', "", svg, count=2)
    prefix = re.sub(r"\W+", "-", title.lower())
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", svg)
    for name, stand_in in PAGE_COLOURS.items():
        svg = svg.replace(stand_in, f"var(--{name})")
    return Markup(svg.replace("<svg", f'<svg role="img" aria-label="{escape(title)}"', 1))
