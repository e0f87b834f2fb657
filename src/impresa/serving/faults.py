"""Faults of a request, each answered with OpenAI's error object; nothing of the server's insides is in one."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Match

from impresa.data.text import as_unicode
from impresa.errors import CheckpointError

logger = logging.getLogger(__name__)

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "service_unavailable_error",
    504: "timeout_error",
}
_RETRY_S = "1"


class ApiError(Exception):
    """A request that is refused.

    Args:
        status: of HTTP.
        message: a sentence for whoever wrote the request.
        param: the field that is at fault, as a path in the body.
        code: a word for programs.
    """

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code

    def response(self) -> JSONResponse:
        """The answer; those that pass by themselves say when to come back."""
        headers = {"Retry-After": _RETRY_S} if self.status in (429, 503) else None
        return error_response(self.status, self.message, self.param, self.code, headers)


def bad(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """A request that is wrong in itself."""
    return ApiError(400, message, param, code)


def error_object(
    status: int, message: str, param: str | None = None, code: str | None = None
) -> dict[str, dict[str, str | None]]:
    """OpenAI's error object."""
    kind = _TYPES.get(status, "invalid_request_error")
    where = None if param is None else as_unicode(param)
    return {"error": {"message": as_unicode(message), "type": kind, "param": where, "code": code}}


def error_response(
    status: int,
    message: str,
    param: str | None = None,
    code: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """An answer with the error object, and the message again where clients of Voyage and FastAPI look for it."""
    told = {**error_object(status, message, param, code), "detail": as_unicode(message)}
    return JSONResponse(told, status, dict(headers or {}))


def add_handlers(app: FastAPI) -> None:
    """Answer every fault with OpenAI's error object."""

    async def of_api(_: Request, error: Any) -> JSONResponse:
        fault: ApiError = error
        return fault.response()

    async def of_http(request: Request, error: Any) -> JSONResponse:
        status = error.status_code
        message = {
            404: f"there is no {request.method} {as_unicode(request.url.path):.200}{_meant(request)}",
            405: f"{request.method} is not what this address takes",
        }.get(status, HTTPStatus(status).phrase.lower())
        return error_response(status, message, code="not_found" if status == 404 else None, headers=error.headers)

    async def of_validation(_: Request, error: Any) -> JSONResponse:
        first = error.errors()[0]
        return validation_fault([{**first, "loc": first["loc"][1:]}]).response()  # without "body" and the like

    async def of_index(_: Request, error: Exception) -> JSONResponse:
        logger.warning("%s", error)
        return ApiError(503, "the index cannot be read now; the server's log says more").response()

    async def of_us(_: Request, __: Exception) -> JSONResponse:
        return error_response(500, "the server has failed at this request; its log says more")

    app.add_exception_handler(ApiError, of_api)
    app.add_exception_handler(HTTPException, of_http)
    app.add_exception_handler(RequestValidationError, of_validation)
    app.add_exception_handler(CheckpointError, of_index)
    app.add_exception_handler(Exception, of_us)


def _meant(request: Request) -> str:
    """The address that a client of another base address, or with a `/` too many, is after."""
    path = f"/{request.url.path.strip('/')}"
    near = (path, f"/v1{path}", path.replace("/v1/v1/", "/v1/", 1)) if path != "/" else ()
    return next((f"; it is at {place:.200}" for place in near if _is_known(request, place)), "")


def _is_known(request: Request, path: str) -> bool:
    scope = {**request.scope, "path": path}
    return any(route.matches(scope)[0] is not Match.NONE for route in request.app.routes)


def validation_fault(errors: Any) -> ApiError:
    """The first of pydantic's errors."""
    first = errors[0]
    param = ".".join(map(str, first["loc"])) or None
    fault = "is unknown here; leave it out" if first["type"] == "extra_forbidden" else first["msg"]
    return bad(f"{param or 'the request'}: {fault}", param)
