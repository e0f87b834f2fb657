"""Routes that embed."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from impresa.serving.bodies import json_answer, parsed, read_object
from impresa.serving.embedding_forms import CohereForm, CohereV1Form, Form, VoyageForm, form_of
from impresa.serving.faults import bad
from impresa.serving.state import State


def router(state: State) -> APIRouter:
    """`/v1/embeddings`, which infinity has at its root, `/v1/multimodalembeddings`, `/v2/embed` and `/v1/embed`."""
    routes = APIRouter()

    async def answer(request: Request, kind: type[Form] | None = None) -> Response:
        body = await read_object(request)
        form = parsed(kind or form_of(body), body)
        state.check_name(form.model)
        embedder = state.require_embedder()
        field, width = form.width()
        if width is not None and not 1 <= width <= embedder.width:
            raise bad(f"{field}: {width} is not within 1 to {embedder.width}, the embeddings' width", field)
        done = await embedder.embed(form.inputs(), may_cut=form.may_cut())
        return json_answer(form.answer(done, state.name))

    @routes.post("/embeddings")
    @routes.post("/v1/embeddings")
    async def embeddings(request: Request) -> Response:
        return await answer(request)

    @routes.post("/v1/multimodalembeddings")
    async def multimodal(request: Request) -> Response:
        return await answer(request, VoyageForm)

    @routes.post("/v2/embed")
    async def embed(request: Request) -> Response:
        return await answer(request, CohereForm)

    @routes.post("/v1/embed")
    async def embed_v1(request: Request) -> Response:
        return await answer(request, CohereV1Form)

    return routes
