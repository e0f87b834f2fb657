"""Curves of a study with a line and a band over seeds for each variant: learning, and embeddings cut short."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import numpy as np

from impresa.ablation.findings import Findings, printable_kind, wrapped
from impresa.ablation.plots import INK, Plot, chart, finish, one_axes, shown
from impresa.ablation.results import CURVES, RunResult
from impresa.reports.charts import PAGE_COLOURS, SERIES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS = {"o": "●", "s": "■", "^": "▲", "v": "▼", "D": "◆", "P": "✚", "X": "✖"}
"""Of the series, and the same signs for a legend in text."""
MAX_TOGETHER = 1 + len(SERIES)
"""Variants that share one chart, the base among them; more of them have a small panel each, beside the base."""
_PANEL_HEIGHT, _PANEL_COLUMNS = 1.35, 2
_PANEL_TITLE, _MAX_TITLE_LINES = 24, 2
_MAX_MARKERS = 8
_MAX_TICKS = 7


@dataclass(frozen=True)
class Band:
    """Mean over seeds along an axis, with a 95% t interval of that mean; equal to it where there is one seed."""

    x: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def legend(findings: Findings) -> list[tuple[str, str, str]]:
    """Name, colour of the page and sign of each curve; empty where each variant has its own panel."""
    positions = shown(findings)
    if len(positions) > MAX_TOGETHER:
        return []
    series = zip(SERIES, MARKERS.values(), strict=True)
    return [("base", "text", "╌"), *((findings.short_names[i], *next(series)) for i in positions[1:])]


def learning_plots(findings: Findings) -> Iterator[Plot]:
    """Validation metrics over the training."""

    def decorate(axes: Axes, name: str) -> None:
        finish(axes, "" if "loss" in name else "%")

    for name, title in CURVES.items():
        bands = {i: _over_steps(name, _runs(findings, i)) for i in shown(findings)}
        yield from _plots(findings, bands, title, "optimizer step", partial(decorate, name=name))


def dimension_plots(findings: Findings) -> Iterator[Plot]:
    """The judge for embeddings cut to their first numbers; nothing where no run was measured so."""
    family = findings.result.judge.partition("@")[0]
    bands = {i: _over_dimensions(family, _runs(findings, i)) for i in shown(findings)}
    kind = printable_kind(family)

    def decorate(axes: Axes) -> None:
        from matplotlib.ticker import NullLocator

        finish(axes, kind.format)
        ticks = sorted({int(x) for band in bands.values() if band for x in band.x})[-_MAX_TICKS:]
        axes.set_xscale("log", base=2)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticks(ticks, map(str, ticks))

    yield from _plots(findings, bands, f"{kind.label} of embeddings cut short", "dimensions", decorate)


def _runs(findings: Findings, position: int) -> tuple[RunResult, ...]:
    return findings.result.runs_of(findings.result.variants[position])


def _over_steps(name: str, runs: Iterable[RunResult]) -> Band | None:
    """A column of the metrics at all steps at which any run has it, in between the ends of each."""
    curves = [run.curves[name] for run in runs if name in run.curves]
    steps = np.unique(np.concatenate([curve.steps for curve in curves])) if curves else np.empty(0)
    return _band(steps, [np.interp(steps, c.steps, c.values, left=np.nan, right=np.nan) for c in curves])


def _over_dimensions(family: str, runs: Iterable[RunResult]) -> Band | None:
    cut = re.compile(rf"{re.escape(family)}@([1-9]\d{{0,8}})")
    by_dimension = [
        {int(found[1]): value for name, value in run.figures.items() if (found := cut.fullmatch(name))} for run in runs
    ]
    dimensions = np.array(sorted({dimension for found in by_dimension for dimension in found}), dtype=float)
    return _band(dimensions, [np.array([found.get(int(d), np.nan) for d in dimensions]) for found in by_dimension])


def _band(x: np.ndarray, rows: list[np.ndarray]) -> Band | None:
    from scipy.stats import t

    values = np.array(rows).reshape(len(rows), len(x))
    number = np.count_nonzero(~np.isnan(values), axis=0)
    x, values, number = x[number > 0], values[:, number > 0], number[number > 0]
    if not len(x):
        return None
    mean = np.nanmean(values, axis=0)
    freedom = np.maximum(number - 1, 1)
    deviation = np.sqrt(np.nansum((values - mean) ** 2, axis=0) / freedom)
    half = t.ppf(0.975, freedom) * deviation / np.sqrt(number)
    return Band(x, mean, mean - half, mean + half)


def _plots(
    findings: Findings, bands: Mapping[int, Band | None], title: str, x_label: str, decorate: Callable[[Axes], None]
) -> Iterator[Plot]:
    """One chart for all variants, or a panel each; `decorate` sets scales and formats. Nothing without a curve."""
    known = [band for band in bands.values() if band is not None]
    if not known:
        return
    together = len(bands) <= MAX_TOGETHER
    rows = -(-(len(bands) - 1) // _PANEL_COLUMNS)

    def prepare(axes: Axes) -> None:
        axes.autoscale(enable=False)
        decorate(axes)
        low, high = min(band.x[0] for band in known), max(band.x[-1] for band in known)
        axes.set(ylim=_limits(known), xlim=(low, high) if low < high else (low - 0.5, high + 0.5))

    def overlay(figure: Figure) -> None:
        axes = one_axes(figure, left=0.5)
        axes.set_xlabel(x_label)
        prepare(axes)
        looks = [
            (INK, "", "--"),
            *((PAGE_COLOURS[name], mark, "-") for name, mark in zip(SERIES, MARKERS, strict=True)),
        ]
        for band, look in zip(bands.values(), looks, strict=False):
            _draw(axes, band, *look)

    def panels(figure: Figure) -> None:
        height = figure.get_size_inches()[1]
        room = {"top": 1 - 0.32 / height, "bottom": 0.45 / height, "left": 0.11, "right": 0.96, "hspace": 0.5}
        grid = figure.subplots(rows, _PANEL_COLUMNS, squeeze=False, gridspec_kw={**room, "wspace": 0.2})
        for axes, i in zip_longest(grid.flat, list(bands)[1:]):
            if i is None:
                axes.set_axis_off()
                continue
            prepare(axes)
            _draw(axes, bands[0], INK, "", "--")
            _draw(axes, bands[i], PAGE_COLOURS["blue"], "", "-")
            axes.set_title(_panel_title(findings, i), loc="left", color=INK, fontsize=7.5)
            axes.tick_params(labelsize=7.5)
            axes.label_outer()
        figure.supxlabel(x_label, color=INK, fontsize=8.5, y=0.08 / height)

    caption = "Mean over seeds with its 95% interval."
    if not together:
        caption += " Each variant, in blue, beside the base, dashed."
    height = 2.9 if together else rows * _PANEL_HEIGHT + 0.5
    yield Plot(title, chart(title, height, overlay if together else panels), caption, "variants")


def _draw(axes: Axes, band: Band | None, colour: str, marker: str, line: str) -> None:
    if band is None:
        return
    axes.fill_between(band.x, band.low, band.high, color=colour, alpha=0.13, linewidth=0)
    every = max(1, len(band.x) // _MAX_MARKERS)
    style: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 3.5, "markevery": every, "linewidth": 1.4}
    axes.plot(band.x, band.mean, linestyle=line, **style)


def _limits(bands: Sequence[Band]) -> tuple[float, float]:
    """The means with some room for the bands, which two seeds make very wide."""
    means = np.concatenate([band.mean for band in bands])
    low, high = means.min(), means.max()
    room = 0.25 * (high - low) or 0.05 * abs(high) or 1.0
    lowest, highest = min(band.low.min() for band in bands), max(band.high.max() for band in bands)
    edge = 0.04 * (high - low)
    return max(lowest - edge, low - room), min(highest + edge, high + room) if highest > low else high + room


def _panel_title(findings: Findings, position: int) -> str:
    lines = wrapped(f"{position}  {findings.short_names[position]}", _PANEL_TITLE)
    cut = lines[:_MAX_TITLE_LINES]
    return "\n".join(cut) + ("…" if cut != lines else "")
