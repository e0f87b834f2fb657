"""Line charts as SVG that takes its colours from the page, and matrices as small PNG pictures."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from impresa.reports.history import Curve

COLOUR_MAP = "viridis"
# Colours that stand for the page's own, so that a chart follows light and dark mode: see report.css.
_PAGE_COLOURS = {
    "#010101": "var(--text)",
    "#020202": "var(--line)",
    "#030303": "var(--blue)",
    "#040404": "var(--orange)",
}
_INK, _GRID, *_SERIES = _PAGE_COLOURS
_MANY_POINTS = 30


def line_chart(title: str, curves: Mapping[str, Curve]) -> str:
    """An inline SVG of curves over optimizer steps, with a legend where there is more than one curve."""
    figure = Figure(figsize=(4.4, 2.9), layout="constrained")
    draw_curves(figure.subplots(), curves, series=_SERIES, ink=_INK, grid=_GRID)
    text = io.StringIO()
    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": title}):
        figure.savefig(text, format="svg", transparent=True, metadata=nothing)
    return _inline(text.getvalue(), title)


def draw_curves(axes: Axes, curves: Mapping[str, Curve], *, series: Sequence[str], ink: str, grid: str) -> None:
    """Draw curves over optimizer steps in the given colours: `ink` for text, `grid` for lines behind."""
    for (name, curve), colour in zip(curves.items(), series, strict=False):
        marker = "" if len(curve.steps) > _MANY_POINTS else "o"
        axes.plot(curve.steps, curve.values, marker=marker, markersize=3.5, linewidth=1.6, color=colour, label=name)
    axes.set_xlabel("optimizer step", color=ink)
    axes.grid(color=grid, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelcolor=ink)
    axes.margins(x=0.02)
    if len(curves) > 1:
        axes.legend(frameon=False, labelcolor=ink)


def matrix_png(matrix: Sequence[Sequence[float]]) -> str:
    """A matrix as a data URI of one pixel per cell, from dark (least) to bright (most)."""
    values = np.asarray(matrix, dtype=np.float64)
    span = values.max() - values.min()
    shares = (values - values.min()) / span if span else np.zeros_like(values)
    pixels = np.uint8(255 * matplotlib.colormaps[COLOUR_MAP](shares)[..., :3])
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _inline(svg: str, title: str) -> str:
    """A whole SVG file as an element of a page: no prologue, no fixed size, names of its own, the page's colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    prefix = re.sub(r"\W+", "-", title.lower())
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", svg)
    for stand_in, colour in _PAGE_COLOURS.items():
        svg = svg.replace(stand_in, colour)
    return svg.replace("<svg", f'<svg role="img" aria-label="{title}"', 1)
