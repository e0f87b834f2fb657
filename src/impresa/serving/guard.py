"""Checks that every request passes: the key, bounds on bodies and on requests at once, time, clients that leave."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection
from contextlib import suppress
from hashlib import sha256
from hmac import compare_digest
from http import HTTPStatus

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from impresa.serving.faults import ApiError
from impresa.serving.progress import PROGRESS, Progress
from impresa.serving.settings import is_loopback
from impresa.serving.state import State

_LEFT = 499
"""Status, for the counts alone, of an answer that nobody waits for any more."""


class Guard:
    """Middleware around all routes.

    Args:
        app: what answers.
        state: the server's.
        open_paths: paths that need no key, and are answered however many requests there are.
    """

    def __init__(self, app: ASGIApp, *, state: State, open_paths: Collection[str]) -> None:
        self._app, self._state, self._open = app, state, open_paths
        self._limits = state.settings.limits
        self._num_bytes = self._num_now = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request; of other protocols only the server's own start and end are passed on."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            if scope["method"] == "HEAD":  # as load balancers ask for /health; the server leaves the body out
                scope = {**scope, "method": "GET"}
            await self._count(scope, receive, _Sender(send))
        else:
            await send({"type": "websocket.close"})

    async def _count(self, scope: Scope, receive: Receive, send: _Sender) -> None:
        metrics, begun = self._state.metrics, time.perf_counter()
        self._num_now += 1
        metrics.now.set(self._num_now)
        try:
            await self._answer(scope, receive, send)
        except ApiError as fault:
            await fault.response()(scope, receive, send)
        finally:
            self._num_now -= 1
            metrics.now.set(self._num_now)
            route = getattr(scope.get("route"), "path", "other")
            metrics.requests.labels(route, str(send.status or _LEFT)).inc()
            metrics.seconds.labels(route).observe(time.perf_counter() - begun)

    async def _answer(self, scope: Scope, receive: Receive, send: _Sender) -> None:
        headers = Headers(scope=scope)
        self._check_host(headers)
        if scope["path"] not in self._open:
            self._check_key(headers)
            if self._num_now > self._limits.requests:
                raise ApiError(429, "too many requests at once; come back in a moment", code="rate_limit_exceeded")
        body = bytearray()
        try:
            await self._read(headers, receive, body)
            await self._run(scope, bytes(body), receive, send)
        finally:
            self._num_bytes -= len(body)

    def _check_host(self, headers: Headers) -> None:
        """Refuse a page of another site whose name has been made to stand for this machine: it could read answers."""
        if self._state.settings.is_local and self._state.settings.api_key is None:
            host = headers.get("host", "")
            name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
            if not is_loopback(name.strip("[]").lower()):
                raise ApiError(403, "this server answers requests to localhost alone; give it a key to allow others")

    def _check_key(self, headers: Headers) -> None:
        key = self._state.settings.api_key
        if key is None:
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        is_same = compare_digest(_digest(given.strip()), _digest(key))  # of equal length, whatever is given
        if scheme.lower() != "bearer" or not is_same:
            raise ApiError(
                401, "the API key is missing or wrong; send Authorization: Bearer KEY", code="invalid_api_key"
            )

    async def _read(self, headers: Headers, receive: Receive, body: bytearray) -> None:
        """All of the body, whose bytes count for those of all requests."""
        most = self._limits.body_bytes
        too_large = ApiError(413, f"the body has more than {most} bytes; send fewer inputs at a time")
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length[:20]) > most:
            raise too_large
        try:
            async with asyncio.timeout(self._limits.body_timeout_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ApiError(_LEFT, "the client has left")
                    chunk = message.get("body", b"")
                    body += chunk
                    self._num_bytes += len(chunk)
                    if len(body) > most:
                        raise too_large
                    if self._num_bytes > self._limits.all_bytes:
                        raise ApiError(429, "too much data at once; come back in a moment", code="rate_limit_exceeded")
                    if not message.get("more_body", False):
                        return
        except TimeoutError as error:
            raise ApiError(408, "the body did not arrive in time") from error

    async def _run(self, scope: Scope, body: bytes, receive: Receive, send: _Sender) -> None:
        """Answer, unless the client leaves or the time is over before the answer begins."""
        progress, gone = Progress(), asyncio.Event()
        PROGRESS.set(progress)
        messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            if messages:
                return messages.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            gone.set()

        work = asyncio.ensure_future(self._app(scope, replay, send))
        leaving = asyncio.ensure_future(watch())
        both = {work, leaving}
        try:
            await asyncio.wait(both, timeout=self._limits.timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if not (work.done() or leaving.done()):
                if send.status is None:
                    raise _late(progress)
                await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if work.done() or send.is_whole:
                await work
        finally:
            await _end(work, leaving)


class _Sender:
    """Passes messages on, and remembers what has been sent."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status: int | None = None
        self.is_whole = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message = {**message, "headers": [*message.get("headers", ()), (b"x-content-type-options", b"nosniff")]}
        elif message["type"] == "http.response.body":
            self.is_whole = not message.get("more_body", False)
        await self._send(message)


def _late(progress: Progress) -> ApiError:
    if progress.begun:
        return ApiError(HTTPStatus.GATEWAY_TIMEOUT, "the answer takes too long; ask for less at a time", code="timeout")
    return ApiError(HTTPStatus.SERVICE_UNAVAILABLE, "the server is busy; come back in a moment", code="overloaded")


async def _end(*tasks: asyncio.Future[None]) -> None:
    """Cancel what is not done, and wait for its end."""
    for task in tasks:
        if not task.done():
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task


def _digest(text: str) -> bytes:
    return sha256(text.encode("utf-8", errors="surrogatepass")).digest()
