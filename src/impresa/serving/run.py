"""A server from its start to its end: the socket, the processes that share it, and signals."""

from __future__ import annotations

import signal
import socket
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, NoReturn

import uvicorn
from fastapi import FastAPI

from impresa.errors import ConfigError
from impresa.run_dir.load import read_run_config
from impresa.serving.app import make_app
from impresa.serving.settings import Settings
from impresa.serving.workers import supervise

_GRACE_S = 10
"""Requests that are being answered at the end have so long."""

_IDLE_S = 30
"""Connections without a request, with a part of its head, or with an answer that nobody reads, are closed after it."""
_LOOK_TICKS = 10
"""So often it is looked for them, in ticks of a tenth of a second."""


def serve(settings: Settings, workers: int = 1) -> None:
    """Serve until a signal ends it: SIGTERM in good order, ctrl-c with `KeyboardInterrupt`.

    Raises:
        ImpresaError: the port is in use, or the run cannot be loaded.
    """
    signal.signal(signal.SIGTERM, _leave)
    read_run_config(settings.run)
    with bound(settings.host, settings.port) as listening:
        address = _address(settings.host, listening.getsockname()[1])

        def tell() -> None:
            print(f"{settings.run} at {address} (ctrl-c ends it)", flush=True)  # noqa: T201

        if workers == 1:
            run_server(settings, listening, tell)
        else:
            supervise(run_server, settings, listening, workers, tell)


def run_server(settings: Settings, listening: socket.socket, tell: Callable[[], object]) -> None:
    """Load the run and serve in this process; `tell` is called once requests are taken."""
    server_of(make_app(settings), tell).run(sockets=[listening])


def server_of(app: FastAPI, tell: Callable[[], object] = lambda: None) -> uvicorn.Server:
    """The server of one process."""
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_GRACE_S,
        timeout_keep_alive=_IDLE_S,
        backlog=2048,
    )
    return _Server(config, tell)


class _Server(uvicorn.Server):
    """A server that says when it has started, and closes connections on which nothing happens.

    uvicorn's own time-out begins with the end of an answer and ends with the first byte of the next request, so that
    clients that send no more than a byte, or read nothing, could hold all connections that there are.
    """

    def __init__(self, config: uvicorn.Config, tell: Callable[[], object]) -> None:
        super().__init__(config)
        self._tell = tell
        self._silent: dict[Any, tuple[tuple[Any, int], float]] = {}
        """Those connections, with the last request and the bytes to be sent, and since when these are the same."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        self._tell()

    async def on_tick(self, counter: int) -> bool:
        if counter % _LOOK_TICKS == 0:
            self._close_silent()
        return await super().on_tick(counter)

    def _close_silent(self) -> None:
        now, before = time.monotonic(), self._silent
        self._silent = {}
        for each in list(self.server_state.connections):
            last, num_unsent = getattr(each, "cycle", None), each.transport.get_write_buffer_size()
            if last is None or last.response_complete or num_unsent:
                state = last, num_unsent
                same, since = before.get(each, (state, now))
                self._silent[each] = state, since if same == state else now
                if now - self._silent[each][1] > _IDLE_S:
                    (each.transport.abort if num_unsent else each.transport.close)()


def bound(host: str, port: int) -> socket.socket:
    """A socket that has the address, and does not listen yet."""
    try:
        family, kind, proto, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind, proto)
    except (OSError, UnicodeError) as error:
        raise ConfigError(
            f"--host: {host} is no address of this machine; give 127.0.0.1, or 0.0.0.0 for all"
        ) from error
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(place)
    except OSError as error:
        found.close()
        reason = (error.strerror or str(error)).lower()
        raise ConfigError(f"--port: {port} on {host} cannot be had ({reason}); choose another") from error
    return found


def _address(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _leave(_: int, __: FrameType | None) -> NoReturn:
    sys.exit(0)
