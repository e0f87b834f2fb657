"""A web server on localhost that behaves as badly as a test asks for."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]
"""Writes all of an answer, headers included; the connection is closed after it."""


@dataclass
class Server:
    """What is asked for is counted by path."""

    port: int = 0
    routes: dict[str, bytes | Answer] = field(default_factory=dict)
    """Files, whole answers, and answers that end the connection, by path; anything else is not there (404)."""
    asked: Counter[str] = field(default_factory=Counter)
    open_now: int = 0
    most_open: int = 0
    """Requests that were answered at once."""

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while head := await reader.readuntil(b"\r\n\r\n"):
                path = head.split(b" ", 2)[1].decode()
                self.asked[path] += 1
                self.open_now += 1
                self.most_open = max(self.most_open, self.open_now)
                try:
                    route = self.routes.get(path.partition("?")[0])
                    if callable(route):
                        await route(writer)
                        break
                    content = file(b"", "404 Not Found") if route is None else route
                    writer.write(content if content.startswith(b"HTTP/") else file(content))
                    await writer.drain()
                finally:
                    self.open_now -= 1
        writer.close()


def file(content: bytes, status: str = "200 OK", **headers: object) -> bytes:
    """An answer that is as it should be, but for the headers that are given."""
    given = {"Content-Length": len(content), "Content-Type": "image/png"} | {
        name.replace("_", "-"): value for name, value in headers.items()
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in given.items() if value is not None)
    return f"HTTP/1.1 {status}\r\n{lines}\r\n".encode() + content


def says(content: bytes = b"", status: str = "200 OK", **headers: object) -> Answer:
    """A route with a status and headers of its own."""

    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(file(content, status, **headers))
        await writer.drain()

    return answer


def leads_to(place: str) -> Answer:
    return says(b"", "302 Found", Location=place)


def in_turn(*answers: Answer) -> Answer:
    """One answer after the other; the last one from then on."""
    left = list(answers)

    async def answer(writer: asyncio.StreamWriter) -> None:
        await (left.pop(0) if len(left) > 1 else left[0])(writer)

    return answer


def drips(content: bytes, each: int, wait_s: float, length: int | None = None) -> Answer:
    """An answer in pieces of so many bytes, with a wait behind each."""

    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(file(b"", Content_Length=len(content) if length is None else length))
        for start in range(0, len(content), each):
            writer.write(content[start : start + each])
            await writer.drain()
            await asyncio.sleep(wait_s)

    return answer


async def endless(writer: asyncio.StreamWriter) -> None:
    """A picture's beginning, and then zeros until the other side has enough."""
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\n\r\n\x89PNG\r\n\x1a\n")
    while True:
        writer.write(bytes(1 << 16))
        await writer.drain()


async def silent(writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(60)


@contextmanager
def web_server(routes: Mapping[str, bytes | Answer] | None = None) -> Iterator[Server]:
    """A server in a thread of this process."""
    server, started = Server(routes=dict(routes or {})), threading.Event()
    ends: list[Callable[[], object]] = []

    async def main() -> None:
        loop, end = asyncio.get_running_loop(), asyncio.Event()
        ends.append(lambda: loop.call_soon_threadsafe(end.set))
        async with await asyncio.start_server(server.serve, "127.0.0.1", 0) as listening:
            server.port = listening.sockets[0].getsockname()[1]
            started.set()
            await end.wait()

    thread = threading.Thread(target=lambda: asyncio.run(main()), daemon=True)
    thread.start()
    started.wait()
    try:
        yield server
    finally:
        ends[0]()
        thread.join()
