"""One request for a picture, within bounds on time, bytes, speed and hops, whatever the server does."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from ssl import SSLError

import aiohttp
from yarl import URL

from impresa import __version__
from impresa.data.fetch.addresses import NO_ADDRESS, PRIVATE, PrivateAddressError, PublicResolver, check_literal, parsed
from impresa.data.fetch.failure import Failure

_REDIRECTS = (301, 302, 303, 307, 308)
_MOST_HOPS = 8
_MAY_PASS = (408, 425, 429)
"""Of the statuses below 500."""
_SERVER_ERROR = 500
_GRACE_S = 3.0
"""From when on a slow server is told from one that has just begun."""

_FAILURES: tuple[tuple[type[Exception] | tuple[type[Exception], ...], str, dict[str, bool]], ...] = (
    (aiohttp.ClientConnectorDNSError, "host not found", {"passing": True, "is_connection": True}),
    (aiohttp.ClientConnectorCertificateError, "bad certificate", {}),
    ((aiohttp.ClientSSLError, SSLError), "no encrypted connection", {"passing": True, "is_connection": True}),
    (aiohttp.ClientPayloadError, "answer ends early", {"passing": True}),
    (aiohttp.ServerDisconnectedError, "connection closed", {"passing": True}),
    (aiohttp.ClientResponseError, "malformed answer", {"passing": True}),
    ((aiohttp.InvalidURL, ValueError), NO_ADDRESS, {}),
    (Exception, "no connection", {"passing": True, "is_connection": True}),
)
"""What an error of a request means, by the first type that it has."""


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What a picture may cost."""

    max_bytes: int
    max_pixels: int
    timeout_s: float
    """From the first request to the last byte, redirects included."""
    min_bytes_per_s: float
    """Slower servers are given up, before the time is over."""
    allow_private: bool = False
    """Talk to machines of the own network, and to this one."""
    hosts: frozenset[str] | None = None
    """Talk to these alone, in lower case, and be led on to no other; None: to any."""


def open_session(bounds: Bounds, num_connections: int, user_agent: str | None = None) -> aiohttp.ClientSession:
    """A session without cookies, proxies, and anything else of the environment."""
    resolver = aiohttp.ThreadedResolver() if bounds.allow_private else PublicResolver()
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=num_connections, resolver=resolver, ttl_dns_cache=300),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={
            "User-Agent": user_agent or f"impresa/{__version__}",
            "Accept": "image/*,*/*;q=0.5",
            "Accept-Encoding": "identity",
        },
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=bounds.timeout_s / 2, sock_read=bounds.timeout_s / 2),
        trust_env=False,
    )


async def download(session: aiohttp.ClientSession, address: str, bounds: Bounds) -> bytes:
    """The file at an address.

    Raises:
        Failure: there is none, or not within the bounds.
    """
    try:
        async with asyncio.timeout(bounds.timeout_s):
            return await _followed(session, address, bounds)
    except TimeoutError as error:  # aiohttp's too
        raise Failure(
            "timeout", passing=True, is_connection=isinstance(error, aiohttp.ConnectionTimeoutError)
        ) from error
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise _failure_of(error) from error


async def _followed(session: aiohttp.ClientSession, address: str, bounds: Bounds) -> bytes:
    url, seen = parsed(address), set[URL]()
    while len(seen) <= _MOST_HOPS:
        if not bounds.allow_private:
            check_literal(url)
        if bounds.hosts is not None and (url.host or "").lower().rstrip(".") not in bounds.hosts:
            raise Failure("host not allowed")
        seen.add(url)
        async with session.get(url, allow_redirects=False) as answer:
            location = answer.headers.get("Location")
            if answer.status not in _REDIRECTS or location is None:
                _check_status(answer)
                return await _body(answer, bounds)
        url = parsed(location, url)
        if url in seen:
            raise Failure("redirected in a circle")
    raise Failure("redirected too often")


def _check_status(answer: aiohttp.ClientResponse) -> None:
    if answer.status != HTTPStatus.OK:
        passing = answer.status in _MAY_PASS or answer.status >= _SERVER_ERROR
        wait_s = _seconds(answer.headers.get("Retry-After")) if passing else None
        raise Failure(f"HTTP {answer.status}", passing=passing, retry_after_s=wait_s)


def _seconds(retry_after: str | None) -> float | None:
    """The wait that a server asks for, in seconds or until a date; None if it says nothing that can be read."""
    if retry_after is None:
        return None
    if retry_after.strip().isdecimal():
        return float(retry_after)
    try:
        return max(parsedate_to_datetime(retry_after).timestamp() - time.time(), 0.0)
    except (ValueError, TypeError, OverflowError, OSError):
        return None


async def _body(answer: aiohttp.ClientResponse, bounds: Bounds) -> bytes:
    too_large = Failure(f"more than {bounds.max_bytes / (1 << 20):g} MiB")
    if (answer.content_length or 0) > bounds.max_bytes:
        raise too_large
    begun, content = time.monotonic(), bytearray()
    async for chunk in answer.content.iter_any():
        content += chunk
        if len(content) > bounds.max_bytes:
            raise too_large
        took = time.monotonic() - begun
        if took > _GRACE_S and len(content) < took * bounds.min_bytes_per_s:
            raise Failure("too slow", passing=True)
    return bytes(content)


def _failure_of(error: Exception) -> Failure:
    """The failure behind an error of a request."""
    if isinstance(error, aiohttp.ClientConnectorDNSError) and isinstance(error.os_error, PrivateAddressError):
        return Failure(PRIVATE)
    return next(Failure(reason, **facts) for kinds, reason, facts in _FAILURES if isinstance(error, kinds))
