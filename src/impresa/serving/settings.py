"""The settings that a server is started with, and its limits."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of one request, and of all of them together."""

    body_bytes: int = 32 << 20
    """Of a request's body."""
    all_bytes: int = 512 << 20
    """Of the bodies of all requests at once."""
    requests: int = 256
    """At once; more are answered with 429."""
    queue: int = 4096
    """Inputs of all requests that wait or are computed; more are answered with 429."""
    items: int = 2048
    """Inputs of a request."""
    media: int = 64
    """Pictures and sounds of a request."""
    tokens: int = 300_000
    """Of all texts of a request."""
    characters: int = 1_000_000
    """Of all texts of a request, which bounds the time that counting their tokens takes."""
    pixels: int = 40_000_000
    """Of a picture, by its header."""
    batch_size: int = 32
    """Inputs, of several requests, that pass the model at a time."""
    max_wait_ms: float = 5.0
    """A batch that is not full waits so long for more inputs."""
    timeout_s: float = 60.0
    """From a request's last byte to its answer."""
    body_timeout_s: float = 30.0
    """From a request's head to its last byte."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings that a server is started with."""

    run: Path
    index: str | None = None
    """An index of the run's embeddings, for `/search`."""
    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = field(default=None, repr=False)
    """The key that clients send as `Authorization: Bearer`; None asks for none."""
    allow_urls: tuple[str, ...] = ()
    """Hosts that pictures and sounds are fetched from; with none of them they come as data URLs alone."""
    allow_private: bool = False
    """Fetch from hosts of the own network too; for tests."""
    name: str | None = None
    """The model's name; None takes that of the run's folder."""
    device: str | None = None
    """Where to compute; None stands for a GPU if there is one."""
    limits: Limits = field(default_factory=Limits)

    @property
    def is_local(self) -> bool:
        """True if only this machine can reach the server."""
        return is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """True for the name or the address of this machine itself."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
