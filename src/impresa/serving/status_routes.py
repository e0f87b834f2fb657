"""How the server is, and which model it has."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response

from impresa.serving.faults import ApiError
from impresa.serving.state import State


def router(state: State) -> APIRouter:
    """`/health`, `/ready`, `/metrics` and `/v1/models`."""
    routes = APIRouter()
    about = {"id": state.name, "object": "model", "created": state.started, "owned_by": "impresa"}

    @routes.get("/health")
    async def health() -> dict[str, str]:
        """The process answers."""
        return {"status": "ok"}

    @routes.get("/ready")
    async def ready() -> dict[str, str]:
        """Requests are taken."""
        if not state.is_ready:
            raise ApiError(503, "the server is starting or ending; try another one")
        return {"status": "ready", "model": state.name}

    @routes.get("/metrics")
    async def metrics() -> Response:
        return Response(state.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @routes.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [about]}

    @routes.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        state.check_name(name)
        return about

    return routes
