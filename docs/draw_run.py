"""One picture of a run for a README: retrieval examples, the figures beside the baselines, and the loss.

`python docs/draw_run.py RUN docs/images/shapes.png` drew the picture of our own.
"""

from __future__ import annotations

import argparse
import base64
import io
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from impresa.errors import CheckpointError, ImpresaError
from impresa.evaluation.gallery import Example
from impresa.evaluation.results import Evaluation, read_evaluation
from impresa.files import write_atomic
from impresa.reports.charts import CHARTS, curves_of, draw_curves, read_history

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

INK, GRID, BLUE, ORANGE = "#1c2430", "#e4e8ee", "#2563eb", "#d9730d"
RIGHT, WRONG = "#15803d", "#c2333d"
NUM_QUERIES = 4
NUM_ANSWERS = 5
CAPTION_WIDTH = 85
SMALL_PX = 100


def write_figure(run_dir: Path, path: Path) -> Path:
    """Draw an evaluated run as a PNG of 1800 x 990 pixels and return its path.

    Raises:
        CheckpointError: the run has no evaluation with examples.
    """
    from matplotlib.figure import Figure

    evaluation = read_evaluation(run_dir)
    if evaluation is None or evaluation.retrieval is None or not evaluation.gallery.text_queries:
        raise CheckpointError(f"{run_dir}: has no retrieval examples to draw; run `impresa eval` on it first")
    figure = Figure(figsize=(12, 6.6), dpi=150, facecolor="white")
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=(1.55, 1))[0]
    _draw_queries(left, evaluation.gallery.text_queries[:NUM_QUERIES])
    places = {"hspace": 0.45, "left": 0.2, "right": 0.95, "top": 0.92, "bottom": 0.1}
    recall, loss = right.subplots(2, 1, gridspec_kw=places)
    _draw_recall(recall, evaluation)
    draw_curves(loss, curves_of(read_history(run_dir), CHARTS["Loss"]), series=(BLUE, ORANGE), ink=INK, grid=GRID)
    loss.set_title("Loss", loc="left", color=INK, fontweight="bold")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_atomic(path, buffer.getvalue())


def _draw_queries(figure: SubFigure, queries: Sequence[Example]) -> None:
    """One row for each text: the text, and under it the images that it finds."""
    places = {"hspace": 0.5, "wspace": 0.06, "left": 0.04, "right": 0.98, "top": 0.92, "bottom": 0.02}
    rows = figure.subplots(NUM_QUERIES, NUM_ANSWERS, gridspec_kw=places, squeeze=False)
    for axes in rows.flat:
        axes.set_axis_off()
    for row, query in zip(rows, queries, strict=False):
        title = textwrap.shorten(query.captions[0], CAPTION_WIDTH, placeholder=" …")
        row[0].set_title(title, loc="left", color=INK, fontsize=9.5, fontweight="bold", parse_math=False)
        for axes, answer in zip(row, query.answers, strict=False):
            assert answer.image is not None  # the answers to a text are images
            picture = Image.open(io.BytesIO(base64.b64decode(answer.image.partition(",")[2])))
            axes.imshow(picture, interpolation="nearest" if max(picture.size) < SMALL_PX else "antialiased")
            axes.set_axis_on()
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set(color=RIGHT if answer.right else WRONG, linewidth=3)


def _draw_recall(axes: Axes, evaluation: Evaluation) -> None:
    """Bars of R@1 in both directions, the model first."""
    rows = {"model": evaluation.retrieval, **evaluation.baselines}
    for i, metrics in enumerate(rows.values()):
        for shift, direction, colour in ((-0.19, "image_to_text", BLUE), (0.19, "text_to_image", ORANGE)):
            value = getattr(metrics, direction).recall_at[1]
            label = direction.replace("_to_", " → ") if i == 0 else None
            axes.barh(i + shift, value, height=0.34, color=colour, label=label)
            axes.text(value + 0.015, i + shift, f"{value:.1%}", va="center", fontsize=8.5, color=INK)
    axes.set_title("R@1", loc="left", color=INK, fontweight="bold")
    axes.set(yticks=range(len(rows)), yticklabels=[name.replace(" ", "\n") for name in rows], xticks=[], xlim=(0, 1.15))
    axes.invert_yaxis()
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelcolor=INK)
    axes.legend(frameon=False, fontsize=8.5, labelcolor=INK, loc="lower right")


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line of this module; returns the exit status."""
    parser = argparse.ArgumentParser(description="Draw a run as one picture.")
    parser.add_argument("run", type=Path, help="directory of an evaluated run")
    parser.add_argument("out", type=Path, help="PNG to write")
    args = parser.parse_args(arguments)
    try:
        write_figure(args.run, args.out)
    except ImpresaError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
