"""The page at `/` and its files. They hold no data and need no key; what they show comes from the other routes."""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files

from fastapi import APIRouter, Response

from impresa.serving.state import State

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "media-src blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
_PAGE = ("impresa.serving", "page")
_TEMPLATES = ("impresa.reports", "templates")
_FILES = {
    "style.css": (_PAGE, "text/css"),
    "page.js": (_PAGE, "text/javascript"),
    "report.css": (_TEMPLATES, "text/css"),
    "controls.css": (_TEMPLATES, "text/css"),
}
"""By its name: where a file lies, and its type."""


PATHS = ("/", *(f"/page/{name}" for name in _FILES))
"""Paths that need no key."""


def router(_: State) -> APIRouter:
    """`GET /` and the style sheets and the script of the page."""
    routes = APIRouter()

    @routes.get("/", include_in_schema=False)
    def page() -> Response:
        return _answer(_PAGE, "index.html", "text/html")

    for name, (place, kind) in _FILES.items():
        routes.add_api_route(f"/page/{name}", _file(place, name, kind), include_in_schema=False)
    return routes


def _file(place: tuple[str, str], name: str, kind: str) -> Callable[[], Response]:
    return lambda: _answer(place, name, kind)


def _answer(place: tuple[str, str], name: str, kind: str) -> Response:
    package, folder = place
    content = (files(package) / folder / name).read_bytes()
    return Response(content, media_type=f"{kind}; charset=utf-8", headers=HEADERS)
