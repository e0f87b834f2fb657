"""The JSON of requests and answers."""

from __future__ import annotations

import json
from typing import Any, TypeVar

from fastapi import Request, Response
from pydantic import BaseModel, ValidationError

from impresa.serving.faults import ApiError, bad, validation_fault

T = TypeVar("T", bound=BaseModel)
_MOST_VALUES = 2_000_000
"""Of a body: an empty list takes twenty times the memory of its two characters."""


async def read_object(request: Request) -> dict[str, Any]:
    """The JSON object that a request holds.

    Raises:
        ApiError: it holds something else, is compressed, or does not say that it is JSON, as pages of other sites could
            not.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and not kind.endswith("+json"):
        raise ApiError(415, "the body must be JSON; send Content-Type: application/json")
    if (coding := request.headers.get("content-encoding", "").strip().lower()) not in ("", "identity"):
        raise ApiError(415, f"the body is compressed ({coding:.40}); send it as it is, without Content-Encoding")
    body = await request.body()
    if sum(map(body.count, (b",", b"[", b"{"))) > _MOST_VALUES:
        raise bad("the body holds too many values; send fewer inputs at a time")
    try:
        found = json.loads(body, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise bad("the body is no valid JSON") from error
    if not isinstance(found, dict):
        raise bad("the body must be a JSON object")
    return found


def parsed(schema: type[T], body: dict[str, Any]) -> T:
    """A body as one of the forms. Raises `ApiError` at its first fault."""
    try:
        return schema.model_validate(body)
    except ValidationError as error:
        raise validation_fault(error.errors(include_url=False, include_input=False)) from error


def json_answer(answer: dict[str, Any]) -> Response:
    """A JSON object as an answer."""
    return Response(json.dumps(answer, separators=(",", ":")), media_type="application/json")


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")
