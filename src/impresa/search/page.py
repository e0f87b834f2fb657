"""The results of a search as one page that stands alone."""

from __future__ import annotations

import base64
from collections.abc import Sequence

from impresa.data.text import as_unicode
from impresa.reports.rendering import render
from impresa.search.index import Result


def results_page(title: str, index: str, where: str | None, results: Sequence[Result]) -> str:
    """The content of the HTML file; nothing in it is fetched.

    Args:
        title: the query in words.
        index: the index in words.
        where: the condition.
        results: best first.
    """
    page = render("search.html.j2", title=title, index=index, where=where, results=results, picture=_picture)
    return as_unicode(page)


def _picture(thumbnail: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(thumbnail).decode()}"
