"""The route that answers."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any
from uuid import uuid4

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse

from impresa.serving.bodies import json_answer, parsed, read_object
from impresa.serving.chat_form import ChatForm
from impresa.serving.faults import ApiError, error_object
from impresa.serving.state import State
from impresa.serving.writer import Piece

logger = logging.getLogger(__name__)


def router(state: State) -> APIRouter:
    """`/v1/chat/completions`."""
    routes = APIRouter()

    @routes.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        form = parsed(ChatForm, await read_object(request))
        state.check_name(form.model)
        pieces = state.require_writer().answer(form)
        if not form.stream:
            return await _whole(pieces, _frame(state.name, "chat.completion"))
        first = await anext(pieces)  # what can be refused is refused by now
        frame = _frame(state.name, "chat.completion.chunk")
        events = _events(first, pieces, frame, form.includes_usage, state.settings.limits.timeout_s)
        return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})

    return routes


def _frame(model: str, kind: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{uuid4().hex}", "object": kind, "created": int(time.time()), "model": model}


async def _whole(pieces: AsyncIterator[Piece], frame: dict[str, Any]) -> Response:
    async with aclosing(pieces):  # type: ignore[type-var]
        found = [piece async for piece in pieces]
    message = {"role": "assistant", "content": "".join(piece.text for piece in found), "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": found[-1].finish_reason}
    return json_answer({**frame, "choices": [choice], "usage": _usage(found[-1])})


async def _events(
    first: Piece, pieces: AsyncIterator[Piece], frame: dict[str, Any], includes_usage: bool, timeout_s: float
) -> AsyncIterator[str]:
    """Server-sent events: the role, the pieces, why the answer ends, how many tokens it has, and a last word."""
    usage = {"usage": None} if includes_usage else {}

    def chunk(delta: dict[str, str], finish_reason: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return _event({**frame, "choices": [choice], **usage})

    try:
        async with aclosing(pieces):  # type: ignore[type-var]
            yield chunk({"role": "assistant", "content": ""})
            piece = first
            while True:
                if piece.text:
                    yield chunk({"content": piece.text})
                if piece.finish_reason is not None:
                    break
                async with asyncio.timeout(timeout_s):
                    piece = await anext(pieces)
        yield chunk({}, piece.finish_reason)
        if includes_usage:
            yield _event({**frame, "choices": [], "usage": _usage(piece)})
        yield "data: [DONE]\n\n"
    except TimeoutError:
        yield _event(error_object(504, "the answer takes too long", code="timeout"))
    except ApiError as fault:
        yield _event(error_object(fault.status, fault.message, fault.param, fault.code))
    except Exception:
        logger.exception("an answer has failed after it had begun")
        yield _event(error_object(500, "the server has failed at this request; its log says more"))


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, separators=(',', ':'))}\n\n"


def _usage(last: Piece) -> dict[str, int]:
    total = last.num_read + last.num_written
    return {"prompt_tokens": last.num_read, "completion_tokens": last.num_written, "total_tokens": total}
