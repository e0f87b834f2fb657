"""The charts of a study as SVG in the colours of the page, fit for a phone, and with signs beside the colours."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal
from warnings import catch_warnings, filterwarnings

import numpy as np
from markupsafe import Markup

from impresa.ablation.findings import Findings, amount, has_interval, verdict_of, wrapped
from impresa.ablation.statistics import Difference, Verdict
from impresa.ablation.study import NULL
from impresa.ablation.tables import COSTS, CostKind, mean_cost
from impresa.evaluation.figures import FigureKind
from impresa.reports.charts import PAGE_COLOURS, inline_svg, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 3.7
"""Inches. A phone shows them at about their own size, so that text in them can be read there."""
FONT: dict[Any, Any] = {"font.size": 8.5, "text.parse_math": False, "axes.titlesize": 8.5}
MAX_SHOWN = 20
"""Variants in a chart; of more, those with the largest differences are drawn."""
INK, SOFT, LINE, CARD = (PAGE_COLOURS[name] for name in ("text", "soft", "line", "card"))
LOOK: dict[Verdict, tuple[str, str, str]] = {
    "better": ("^", PAGE_COLOURS["right"], PAGE_COLOURS["right"]),
    "worse": ("v", PAGE_COLOURS["wrong"], PAGE_COLOURS["wrong"]),
    "no difference shown": ("o", PAGE_COLOURS["blue"], PAGE_COLOURS["blue"]),
    "no verdict": ("o", SOFT, CARD),
}
"""Marker, its edge and its face; the same signs as in the tables."""
_COST_CHARTS = ("training time", "FLOPs per sample", "parameters")
_LINE_HEIGHT, _TRACK, _GAP = 0.15, 0.25, 0.1
_NAME_WIDTH = 30
"""Characters of a name that fit beside its numbers."""
_LOG_FROM = 20
"""Costs that differ by such a factor are drawn on a logarithmic axis."""
_SAME = 1e-3
_FREE = 14
"""Points of distance that are enough between labels."""


@dataclass(frozen=True)
class Plot:
    """A chart as it stands on the page."""

    title: str
    svg: Markup
    caption: str
    legend: Literal["verdicts", "variants"]
    """The signs that it uses."""


def shown(findings: Findings) -> list[int]:
    """Positions of the variants that are drawn: the base, the null control, and those that differ most."""
    differences = findings.judge.differences
    others = range(1, len(differences))

    def size(position: int) -> float:
        difference = differences[position]
        control = findings.result.variants[position].name == NULL
        return math.inf if control else abs(difference.mean) if difference else -1.0

    return [0, *sorted(sorted(others, key=size, reverse=True)[:MAX_SHOWN])]


def effect_plot(findings: Findings) -> Plot | None:
    """Forest plot: the difference of each variant to the base with its interval, and that of each seed as a dot."""
    rows = [(i, found) for i in shown(findings) if (found := findings.judge.differences[i]) is not None]
    if not rows:
        return None
    kind = findings.kind
    names = {i: wrapped(f"{i}  {findings.short_names[i]}", _NAME_WIDTH) for i, _ in rows}
    height = sum(len(names[i]) * _LINE_HEIGHT + _TRACK + _GAP for i, _ in rows)

    def draw(figure: Figure) -> None:
        axes = one_axes(figure, left=0.05, bottom=0.5, top=0.25, right=0.05)
        top = 0.0
        for i, difference in rows:
            _name_row(axes, top, names[i], _with_interval(difference, lambda value: amount(value, kind, "+")))
            top += len(names[i]) * _LINE_HEIGHT + 0.03
            _effect(axes, top, difference, _by_seed(findings, i) * kind.scale, kind.scale)
            top += _TRACK + _GAP - 0.03
        axes.set(ylim=(height, 0), yticks=[], xlabel=f"difference to the base in {kind.label}" + unit_of(kind))
        _directions(axes, ("worse", "better") if kind.higher_is_better else ("better", "worse"))
        finish(axes, "")
        axes.grid(visible=False)

    caption = "Line: simultaneous 95% interval of the difference to the base. Dots: the difference with each seed."
    title = f"Effect on {kind.label}"
    return Plot(title, chart(title, height + 0.75, draw), caption, "verdicts")


def _by_seed(findings: Findings, position: int) -> np.ndarray:
    """Difference of each seed to the base: with the same seed, or in the mean where the variant has other seeds."""
    scores = findings.result.scores(findings.result.judge)
    is_paired = findings.result.variants[position].seed_offset == 0
    base = findings.judge.estimates[0]
    return scores[position] - (scores[0] if is_paired or base is None else base.mean)


def _directions(axes: Axes, words: tuple[str, str]) -> None:
    """The words of what lies left and right of zero, on top."""
    style: dict[str, Any] = {
        "xycoords": ("data", "axes fraction"),
        "textcoords": "offset points",
        "color": SOFT,
        "fontsize": 8,
    }
    low, high = axes.get_xlim()
    if low < 0 < high:
        axes.annotate(f"← {words[0]}", (0, 1), xytext=(-6, 6), ha="right", **style)
        axes.annotate(f"{words[1]} →", (0, 1), xytext=(6, 6), ha="left", **style)


def _name_row(axes: Axes, top: float, name: Sequence[str], numbers: str) -> None:
    across = axes.get_yaxis_transform()
    axes.text(0, top, "\n".join(name), transform=across, color=INK, va="top", linespacing=1.15)
    axes.text(1, top, numbers, transform=across, color=INK, va="top", ha="right", fontsize=8)


def _with_interval(difference: Difference, show: Callable[[float], str]) -> str:
    interval = f" ({show(difference.low)} to {show(difference.high)})" if has_interval(difference) else ""
    return show(difference.mean) + interval


def _effect(axes: Axes, top: float, difference: Difference, by_seed: np.ndarray, scale: float) -> None:
    """One row: a band with the interval in its upper half, dots of the seeds in its lower one."""
    marker, edge, face = LOOK[verdict_of(difference)]
    axes.axhspan(top, top + _TRACK, color=LINE, alpha=0.45, linewidth=0)
    axes.plot([0, 0], [top, top + _TRACK], color=SOFT, linewidth=1)
    upper, lower = top + 0.36 * _TRACK, top + 0.78 * _TRACK
    if has_interval(difference):
        bounds = [difference.low * scale, difference.high * scale]
        axes.plot(bounds, [upper, upper], color=edge, linewidth=2, solid_capstyle="butt")
    style: dict[str, Any] = {
        "color": edge,
        "markerfacecolor": face,
        "markersize": 6,
        "markeredgewidth": 1.2,
        "zorder": 4,
    }
    axes.plot([difference.mean * scale], [upper], marker=marker, **style)
    axes.plot(by_seed, np.full(by_seed.shape, lower), "o", color=INK, alpha=0.55, markersize=2.6, markeredgewidth=0)


def seed_plot(findings: Findings) -> Plot | None:
    """The judge by variant, a dot for each seed; a line joins the dots of one seed."""
    positions = shown(findings)
    scores = findings.result.scores(findings.result.judge)[positions]
    if np.isnan(scores).all():
        return None
    kind = findings.kind
    paired = [findings.result.variants[i].seed_offset == 0 for i in positions]
    columns = np.arange(len(positions))

    def draw(figure: Figure) -> None:
        axes = one_axes(figure)
        axes.plot(columns[paired], scores[paired], color=SOFT, linewidth=0.6, alpha=0.45)
        axes.plot(columns, scores, "o", color=INK, alpha=0.6, markersize=3, markeredgewidth=0)
        for column, i in zip(columns, positions, strict=True):
            if (estimate := findings.judge.estimates[i]) is not None:
                colour = INK if i == 0 else LOOK[verdict_of(findings.judge.differences[i])][1]
                axes.plot([column - 0.32, column + 0.32], [estimate.mean] * 2, color=colour, linewidth=2.6)
        axes.set_xticks(columns, [_label(findings, i) for i in positions])
        axes.tick_params(axis="x", labelsize=8 if len(positions) <= MAX_SHOWN // 2 else 6.5)
        axes.set(xlabel="variant", ylabel=kind.label)
        finish(axes, kind.format)
        axes.grid(visible=False, axis="x")

    caption = "Dots: runs; a thin line joins those of one seed. Bars: means."
    return Plot("Each seed", chart(f"{kind.label} of each seed", 2.9, draw), caption, "verdicts")


def cost_plots(findings: Findings) -> Iterator[Plot]:
    """Quality against each cost that differs between variants."""
    for name in _COST_CHARTS:
        kind = next(kind for kind in COSTS if kind.label == name)
        points = _quality_and_cost(findings, kind)
        costs = [cost for cost, _ in points.values()]
        if costs and max(costs) - min(costs) > _SAME * max(costs):
            title = f"{findings.kind.label} against {name}"
            caption = "Means over seeds. No variant on the dashed front is beaten on both; a step of it may be chance."
            yield Plot(title, _cost_chart(title, findings, kind, points), caption, "verdicts")


def _quality_and_cost(findings: Findings, kind: CostKind) -> dict[int, tuple[float, float]]:
    """(cost, mean of the judge) by position; without the null control, which costs what the base costs."""
    result = findings.result
    points = {}
    for i in shown(findings):
        cost, estimate = mean_cost(result, result.variants[i], kind), findings.judge.estimates[i]
        if cost is not None and estimate is not None and result.variants[i].name != NULL:
            points[i] = (cost, estimate.mean)
    return points


def _cost_chart(title: str, findings: Findings, kind: CostKind, points: Mapping[int, tuple[float, float]]) -> Markup:
    costs = [cost for cost, _ in points.values()]
    front = pareto_front(points, higher_is_better=findings.kind.higher_is_better)

    def draw(figure: Figure) -> None:
        from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

        axes = one_axes(figure)
        axes.plot(*zip(*(points[i] for i in front), strict=True), "--", color=SOFT, linewidth=1, drawstyle="steps-post")
        for i, (cost, quality) in points.items():
            marker, edge, face = ("D", INK, INK) if i == 0 else LOOK[verdict_of(findings.judge.differences[i])]
            axes.plot([cost], [quality], marker, color=edge, markerfacecolor=face, markersize=6, zorder=3)
        axes.margins(0.1)
        if min(costs) > 0 and max(costs) > _LOG_FROM * min(costs):
            axes.set_xscale("log")
            axes.xaxis.set_minor_formatter(NullFormatter())
        else:
            axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: kind.show(value)))
        axes.set(xlabel=kind.label, ylabel=findings.kind.label)
        finish(axes, findings.kind.format)
        _label_points(axes, {_label(findings, i): point for i, point in points.items()})

    return chart(title, 2.8, draw)


def pareto_front(points: Mapping[int, tuple[float, float]], *, higher_is_better: bool) -> list[int]:
    """Keys of the points (cost, quality) that no other beats on both, by rising cost."""
    sign = 1 if higher_is_better else -1
    front: list[int] = []
    best = -math.inf
    for key in sorted(points, key=lambda key: (points[key][0], -sign * points[key][1])):
        if sign * points[key][1] > best:
            front.append(key)
            best = sign * points[key][1]
    return front


def _label_points(axes: Axes, points: Mapping[str, tuple[float, float]]) -> None:
    """Write each label at that side of its point which is farthest from all other points and labels."""
    axes.get_xlim(), axes.get_ylim()  # from here on, places are known
    dots = axes.figure.dpi / 72
    places = {label: axes.transData.transform(point) / dots for label, point in points.items()}
    taken = list(places.values())
    style: dict[str, Any] = {
        "textcoords": "offset points",
        "ha": "center",
        "va": "center_baseline",
        "color": INK,
        "fontsize": 8,
    }
    behind = {"facecolor": CARD, "edgecolor": "none", "alpha": 0.8, "pad": 0.4}
    for label, place in places.items():
        wide = 5 + 2.6 * len(label)
        sides = np.array(
            [(wide + 2, 0), (-wide - 2, 0), (0, 9), (0, -9), (wide, 8), (-wide, 8), (wide, -8), (-wide, -8)]
        )
        others = np.array([other for other in taken if other is not place] or [np.full(2, math.inf)])
        free = np.linalg.norm((place + sides)[:, None] - others, axis=-1).min(axis=1)
        side = sides[np.minimum(free, _FREE).argmax()]
        taken.append(place + side)
        axes.annotate(label, points[label], xytext=tuple(side), bbox=behind, **style)


def _label(findings: Findings, position: int) -> str:
    """The base and the null control by name, the others by the number of their row."""
    name = findings.result.variants[position].name
    return name if position == 0 or name == NULL else str(position)


def unit_of(kind: FigureKind) -> str:
    return f", {kind.unit}" if kind.unit else ""


def one_axes(
    figure: Figure, *, left: float = 0.62, bottom: float = 0.45, right: float = 0.18, top: float = 0.08
) -> Axes:
    """Axes with margins in inches; matplotlib's own layouts take seconds for a page of charts."""
    width, height = figure.get_size_inches()
    across, up = (left / width, 1 - right / width), (bottom / height, 1 - top / height)
    return figure.add_axes((across[0], up[0], across[1] - across[0], up[1] - up[0]))


def finish(axes: Axes, spec: str) -> None:
    """The look of all axes; the vertical one shows shares as percentages, if they have such a format."""
    from matplotlib.ticker import FuncFormatter

    if spec.endswith("%"):
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}%"))
    plain(axes, ink=INK, grid=LINE)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)


def chart(title: str, height: float, draw: Callable[[Figure], None]) -> Markup:
    """A chart of the common width and a height in inches."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(FONT), catch_warnings():
        filterwarnings("ignore", message="Glyph .* missing")  # the page's font has it, or shows that it has not
        figure = Figure(figsize=(WIDTH, height))
        draw(figure)
        return inline_svg(figure, title)
