"""A server from its start to its end: the socket, the processes that share it, and signals."""

from __future__ import annotations

import signal
import socket
import sys
from types import FrameType
from typing import NoReturn

import uvicorn

from impresa.errors import ConfigError
from impresa.serving.app import make_app
from impresa.serving.settings import Settings

_GRACE_S = 10
"""Requests that are being answered at the end have so long."""


def serve(settings: Settings, workers: int = 1) -> None:
    """Serve until a signal ends it: SIGTERM in good order, ctrl-c with `KeyboardInterrupt`.

    Raises:
        ImpresaError: the port is in use, or the run cannot be loaded.
    """
    signal.signal(signal.SIGTERM, _leave)
    with _bound(settings.host, settings.port) as listening:
        port = listening.getsockname()[1]
        server = make_server(settings)
        print(f"{settings.run} at {_address(settings.host, port)} (ctrl-c ends it)", flush=True)  # noqa: T201
        server.run(sockets=[listening])


def make_server(settings: Settings) -> uvicorn.Server:
    """The server of one process, whose model is loaded."""
    return uvicorn.Server(
        uvicorn.Config(
            make_app(settings),
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=_GRACE_S,
            backlog=2048,
        )
    )


def _bound(host: str, port: int) -> socket.socket:
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
