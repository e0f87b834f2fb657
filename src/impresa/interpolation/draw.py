"""The curve as a picture."""

from __future__ import annotations

import io

from impresa.evaluation.figures import kind_of
from impresa.interpolation.curve import Curve, Measured

_INK, _GRID, _LINE, _CHOSEN = "#222222", "#dddddd", "#2f6fb3", "#c2410c"
_DPI = 144


def png_of(curve: Curve) -> bytes:
    """New figure over old one, or over alpha where there are no old data; a star on the place that is chosen."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    from impresa.reports.charts import plain

    has_old = curve.old is not None
    across = [point.old if point.old is not None else point.alpha for point in curve.points]
    up = [point.new for point in curve.points]
    chosen = curve.points.index(curve.chosen)
    with rc_context({"text.parse_math": False}):
        figure = Figure(figsize=(6.4, 4.6), dpi=_DPI, facecolor="white", layout="constrained")
        axes = figure.add_subplot()
        axes.plot(across, up, marker="o", markersize=4, linewidth=1.4, color=_LINE)
        axes.plot(across[chosen], up[chosen], marker="*", markersize=15, color=_CHOSEN, linestyle="none")
        for point, x in zip(curve.points, across, strict=True):
            axes.annotate(f"{point.alpha:g}", (x, point.new), (5, 5), textcoords="offset points", fontsize=7)
        if has_old and curve.points[0].old is not None:
            axes.axvline(curve.keep * curve.points[0].old, color=_INK, linewidth=0.8, linestyle=":")
        axes.set_xlabel(_label(curve.old) if curve.old else "alpha", color=_INK)
        axes.set_ylabel(_label(curve.new), color=_INK)
        plain(axes, ink=_INK, grid=_GRID)
        for axis, measured in ((axes.yaxis, curve.new), (axes.xaxis, curve.old)):
            if measured is not None and kind_of(measured.metric).unit:
                axis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.set_title(f"alpha {curve.chosen.alpha:g} is chosen", color=_INK, fontsize=10)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _label(measured: Measured, most: int = 60) -> str:
    return measured.label if len(measured.label) <= most else f"{measured.label[: most - 1]}…"
