"""The application: its state, its routes, and what stands before them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from fastapi import APIRouter, FastAPI

from impresa.serving import chat_routes, embedding_routes, page_routes, search_routes, status_routes
from impresa.serving.faults import add_handlers
from impresa.serving.guard import Guard
from impresa.serving.settings import Settings
from impresa.serving.state import State, load_state

ROUTERS: tuple[Callable[[State], APIRouter], ...] = (
    status_routes.router,
    embedding_routes.router,
    chat_routes.router,
    search_routes.router,
    page_routes.router,
)
"""Makers of the routes."""
OPEN = ("/health", "/ready", *page_routes.PATHS)
"""Paths that need no key."""


def make_app(settings: Settings) -> FastAPI:
    """A server of a run, which is loaded here.

    Raises:
        ImpresaError: the run, or the index, cannot be loaded.
    """
    return app_of(load_state(settings))


def app_of(state: State) -> FastAPI:
    """The server of a state."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with state.running():
            yield

    app = FastAPI(
        title="impresa", docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False, lifespan=lifespan
    )
    app.state.serving, app.state.model = state, state.model
    for router in ROUTERS:
        app.include_router(router(state))
    add_handlers(app)
    app.add_middleware(Guard, state=state, open_paths=OPEN)
    return app
