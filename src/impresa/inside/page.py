"""An explanation as one page that stands alone."""

from __future__ import annotations

from functools import partial

from impresa.inside.drawing import SHOWN_PX, overlay
from impresa.inside.explanation import Explanation
from impresa.reports.charts import matrix_png
from impresa.reports.pictures import data_uri
from impresa.reports.rendering import render


def explanation_page(explanation: Explanation, title: str) -> str:
    """The content of the HTML file; nothing in it is fetched."""
    picture = partial(data_uri, most_px=2 * SHOWN_PX)
    return render(
        "explanation.html.j2",
        title=title,
        explanation=explanation,
        kind=lambda section: type(section).__name__,
        picture=picture,
        drawn=lambda tile: picture(overlay(explanation.picture, tile.values)),
        strip=lambda row: matrix_png([row]),
    )
