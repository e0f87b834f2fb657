"""What `impresa data check` shows: a contact sheet with captions, and one page that stands alone."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from markupsafe import Markup
from PIL import Image, ImageDraw

from impresa.data.check import Histogram, Look
from impresa.data.near_duplicates.groups import BIN_WIDTH, MOST_DIFFERENCE
from impresa.data.near_duplicates.record import drawable, most_telling
from impresa.data.sample import Sample
from impresa.data.sources import BadSample, Source
from impresa.reports.charts import PAGE_COLOURS, inline_svg, plain
from impresa.reports.pictures import data_uri
from impresa.reports.rendering import render

_MOST_SHOWN = 24
_MOST_LISTED = 50
_SIDE_PX, _LINE_PX, _NUM_LINES, _GAP_PX, _COLUMNS = 160, 13, 4, 12, 6
_LETTERS = 26
"""Of a line below a picture."""


def samples_to_show(source: Source, most: int = _MOST_SHOWN) -> list[Sample]:
    """Good samples with an image, at even distances through the data."""
    step = max(len(source) // most, 1)
    found = (_sample(source, index) for index in range(0, len(source), step))
    return [sample for sample in found if sample is not None and sample.image is not None][:most]


def contact_sheet(samples: Sequence[Sample]) -> Image.Image:
    """The samples' images with the start of their captions."""
    columns = min(_COLUMNS, max(len(samples), 1))
    width, height = _SIDE_PX + _GAP_PX, _SIDE_PX + _NUM_LINES * _LINE_PX + _GAP_PX
    rows = max(-(-len(samples) // columns), 1)
    sheet = Image.new("RGB", (columns * width + _GAP_PX, rows * height + _GAP_PX), "white")
    pen = ImageDraw.Draw(sheet)
    for place, sample in enumerate(samples):
        left, top = _GAP_PX + place % columns * width, _GAP_PX + place // columns * height
        assert sample.image is not None
        small = sample.image.copy()
        small.thumbnail((_SIDE_PX, _SIDE_PX))
        sheet.paste(small, (left + (_SIDE_PX - small.width) // 2, top + (_SIDE_PX - small.height) // 2))
        lines = textwrap.wrap(drawable(_said(sample), 400), _LETTERS)[:_NUM_LINES]
        for number, line in enumerate(lines):
            pen.text((left, top + _SIDE_PX + number * _LINE_PX), line, fill="black")
    return sheet


def data_page(name: str, look: Look, source: Source, notes: Sequence[str], rows: Sequence[tuple[str, str]]) -> str:
    """The content of the HTML file; nothing in it is fetched.

    Args:
        name: of the data.
        look: what was found.
        source: the data, from which the pictures are read once more.
        notes: lines that say what to mind.
        rows: the summary, as it is printed.
    """
    summary, found = look.summary, look.found
    pairs = [
        (
            pair,
            *(look.names[k] for k in (pair.first, pair.second)),
            *(_picture(source, look, k) for k in (pair.first, pair.second)),
        )
        for pair in most_telling(found, _MOST_SHOWN)
    ]
    charts = {
        "Width in pixels": _bars("Width in pixels", summary.widths_px, "px"),
        "Height in pixels": _bars("Height in pixels", summary.heights_px, "px"),
        "Caption length": _bars("Caption length", summary.captions_words, "words"),
    }
    compared = Histogram(0, BIN_WIDTH, tuple(found.histogram.tolist())) if found.num_compared else None
    shown = samples_to_show(source)
    return render(
        "data.html.j2",
        name=name,
        summary=summary,
        rows=rows,
        notes=notes,
        charts={title: chart for title, chart in charts.items() if chart},
        distances=_bars("Difference of images whose hashes are near", compared, "0 to 255", MOST_DIFFERENCE),
        most_difference=MOST_DIFFERENCE,
        pairs=pairs,
        samples=[(sample.id, _said(sample), data_uri(sample.image)) for sample in shown if sample.image],
        most_listed=_MOST_LISTED,
    )


def _said(sample: Sample) -> str:
    if sample.captions:
        return " / ".join(sample.captions)
    turns = (f"{turn.question} {turn.answer}" for dialogue in sample.dialogues for turn in dialogue.turns)
    return sample.label or next(turns, "")


def _sample(source: Source, index: int) -> Sample | None:
    try:
        return source[index]
    except BadSample:
        return None


def _picture(source: Source, look: Look, number: int) -> str | None:
    sample = _sample(source, look.indices[number])
    return data_uri(sample.image) if sample is not None and sample.image is not None else None


def _bars(title: str, values: Histogram | None, unit: str, mark: float | None = None) -> Markup | None:
    """A histogram as an inline SVG, with a line at `mark`."""
    if values is None:
        return None
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(4.4, 2.4), layout="constrained")
    axes = figure.subplots()
    edges = [values.start + values.width * k for k in range(len(values.counts))]
    axes.bar(edges, values.counts, width=0.92 * values.width, align="edge", color=PAGE_COLOURS["blue"])
    if mark is not None:
        axes.axvline(mark, color=PAGE_COLOURS["orange"], linestyle="--", linewidth=1.2)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.set_xlabel(unit, color=PAGE_COLOURS["text"])
    plain(axes, ink=PAGE_COLOURS["text"], grid=PAGE_COLOURS["line"])
    return inline_svg(figure, title)
