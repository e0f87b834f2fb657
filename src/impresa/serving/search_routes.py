"""`POST /search` in an index, `GET /sounds/ID` of what it finds, and `GET /info`: what the page at `/` has to know."""

from __future__ import annotations

from typing import Any

import torch
from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool
from torch import Tensor
from torch.nn import functional as F

from impresa.errors import ConfigError, DataError
from impresa.search.query import less
from impresa.search.snapshot import Snapshot
from impresa.serving.bodies import json_answer, parsed, read_object
from impresa.serving.faults import ApiError, bad
from impresa.serving.parts import Part, check_amount, media_part, text_part
from impresa.serving.searching import Example, Searched, SearchForm, answer, dimensions_of, sound_of
from impresa.serving.state import State
from impresa.tasks.alignment.embedder import EmbeddingModel

Named = tuple[str, Example]
"""An example, and the field in the request."""


def router(state: State) -> APIRouter:
    """The routes. Raises `CheckpointError` where the settings name an index that is none, or is of another run."""
    routes = APIRouter()
    no_index = ApiError(404, "there is no index; start the server with --index", code="no_index")
    searched = None if state.settings.index is None else Searched(state.settings.index, state.model)

    @routes.get("/info")
    async def info() -> dict[str, Any]:
        """The abilities of the server."""
        about = None if searched is None else await run_in_threadpool(_of_index, searched)
        name = state.model.config.name
        return {"name": name, "model": state.name, "can": _abilities(state, searched), "index": about}

    @routes.post("/search")
    async def search(request: Request) -> Response:
        """The rows that are nearest to a query."""
        if searched is None:
            raise no_index
        form = parsed(SearchForm, await read_object(request))
        wanted, unwanted = form.wanted(), form.unwanted()
        if not wanted:
            raise bad("query: there is nothing to search for; give a text, an image, a sound or an id", "query")
        try:
            snapshot = await run_in_threadpool(searched.newest)
            vectors = await _vectors(state, searched, snapshot, [*wanted, *unwanted])
            aim, against = _mean(wanted, vectors), _mean(unwanted, vectors[len(wanted) :])
            assert aim is not None
            return json_answer(await run_in_threadpool(answer, snapshot, less(aim, against), form))
        except (ConfigError, DataError) as error:
            raise bad(str(error), str(error).partition(":")[0]) from error

    @routes.get("/sounds/{id}")
    async def sound(id: str) -> Response:
        """The file of a result that is a sound."""
        if searched is None:
            raise no_index
        content, kind = await run_in_threadpool(lambda: sound_of(searched.newest(), id))
        return Response(content, media_type=kind)

    return routes


def _abilities(state: State, searched: Searched | None) -> dict[str, bool]:
    """Modalities that can be searched for, and whether the model answers."""
    model = state.model if searched is None else searched.model
    embeds = isinstance(model, EmbeddingModel)
    hears = embeds and model.config.audio_encoder is not None
    return {"text": embeds, "image": embeds, "sound": hears, "ask": state.writer is not None}


def _of_index(searched: Searched) -> dict[str, Any]:
    state = searched.newest()
    about = state.about
    sizes = {"rows": len(state), "width": about.width, "dimensions": dimensions_of(state)}
    return {**sizes, "trained": bool(about.dims), "modalities": about.modalities}


async def _vectors(state: State, searched: Searched, snapshot: Snapshot, examples: list[Named]) -> list[Tensor]:
    """(E,) of each example."""
    found: dict[int, Tensor] = {}
    parts: dict[int, Part] = {}
    for number, (where, example) in enumerate(examples):
        if example.vector is not None:
            if len(example.vector) != snapshot.about.width:
                fault = f"has {len(example.vector)} numbers, and the index's have {snapshot.about.width}"
                raise bad(f"{where}.vector: {fault}", f"{where}.vector")
            found[number] = torch.tensor(example.vector)
        elif example.id is not None:
            vector = await run_in_threadpool(snapshot.vector_of, example.id)
            if vector is None:
                raise bad(f"{where}.id: no row of the index has this id; it may be gone", f"{where}.id", "unknown_id")
            found[number] = vector
        elif example.text is not None:
            parts[number] = text_part(example.text, f"{where}.text")
        elif example.image is not None:
            parts[number] = media_part("image", example.image, f"{where}.image")
        else:
            parts[number] = media_part("audio", example.sound, f"{where}.sound")
    if parts:
        found |= dict(zip(parts, await _embedded(state, searched, list(parts.values())), strict=True))
    return [found[number] for number in range(len(examples))]


async def _embedded(state: State, searched: Searched, parts: list[Part]) -> list[Tensor]:
    if state.embedder is not None:
        done = await state.embedder.embed([[part] for part in parts])
        return list(done.vectors)
    check_amount([parts], state.settings.limits)
    model = searched.model
    encoders: dict[str, Any] = {"text": model.encode_text, "image": model.encode_image, "audio": model.encode_audio}
    vectors = []
    for part in parts:  # the server's own model answers: that of the index computes one by one
        value = part.value if part.kind == "text" else await state.media.content(part)
        vectors.append(await state.engine.compute(encoders[part.kind], value))
    return vectors


def _mean(examples: list[Named], vectors: list[Tensor]) -> Tensor | None:
    """(E,): the weighted mean of the examples' vectors, of length one; None of no examples."""
    if not examples:
        return None
    weights = torch.tensor([example.weight for _, example in examples])
    return F.normalize(weights @ F.normalize(torch.stack(vectors[: len(examples)]), dim=-1), dim=0)
