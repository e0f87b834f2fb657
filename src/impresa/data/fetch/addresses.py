"""Which machines a table may make us talk to: public ones, unless private ones are allowed.

A name is resolved once, and the addresses that were checked are those that are dialled: a name server that answers
otherwise the next time changes nothing.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from ipaddress import IPv4Address, IPv6Address

from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from impresa.data.fetch.failure import Failure

PRIVATE = "private address"
NO_ADDRESS = "no http address"
_LONGEST = 8000
"""Characters of an address; servers take no more in a line."""
_NUMBER = re.compile(r"(0x[0-9a-f]*|[0-9]+)(\.(0x[0-9a-f]*|[0-9]+))*\.?", re.IGNORECASE)
"""An IPv4 address in any of the ways that systems read; but for the usual one nobody needs them."""
_WITH_IPV4 = ipaddress.ip_network("64:ff9b::/96")
"""IPv6 addresses that a gateway turns into the IPv4 address in their last 32 bits."""


class PrivateAddressError(OSError):
    """A name stands for private addresses alone."""


def is_public(host: str) -> bool:
    """True for the IP address of a machine that anybody may talk to."""
    try:
        found = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    inner = _ipv4_in(found) if isinstance(found, IPv6Address) else None
    if inner is not None:
        found = inner
    if isinstance(found, IPv6Address) and found.is_site_local:  # no longer assigned, and still in use here and there
        return False
    return found.is_global and not (found.is_multicast or found.is_reserved or found.is_unspecified)


def _ipv4_in(address: IPv6Address) -> IPv4Address | None:
    """The IPv4 address that packets to an IPv6 address end at, where there is one."""
    if address in _WITH_IPV4:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)


def parsed(text: str, base: URL | None = None) -> URL:
    """An address of a table, or one that `base` leads on to, as it is sent.

    Raises:
        Failure: it is none that pictures are fetched from.
    """
    try:
        is_written_out = text.isascii() and text.isprintable() and " " not in text
        url = URL(text, encoded=is_written_out)  # an address with a signature must stay as it is
        url = url if base is None else base.join(url)
        host = url.host
        _ = url.port
    except ValueError as error:
        raise Failure(NO_ADDRESS) from error
    if url.scheme not in ("http", "https") or not host or len(text) > _LONGEST:
        raise Failure(NO_ADDRESS)
    return url


def check_literal(url: URL) -> None:
    """Refuse an address whose host is the number of a private machine; names are the resolver's.

    Raises:
        Failure: it is one.
    """
    host = url.host or ""
    is_number = ":" in host or _NUMBER.fullmatch(host) is not None
    if is_number and not is_public(host):
        raise Failure(PRIVATE)


class PublicResolver(AbstractResolver):
    """The system's name resolution, of which only public addresses are given."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        found = await asyncio.get_running_loop().getaddrinfo(
            host, port, type=socket.SOCK_STREAM, family=family, flags=socket.AI_ADDRCONFIG
        )
        public = [(kind, proto, place) for kind, _, proto, _, place in found if is_public(str(place[0]))]
        if not public:
            raise PrivateAddressError(f"{host} has private addresses alone")
        flags = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
        return [
            ResolveResult(hostname=host, host=str(place[0]), port=port, family=kind, proto=proto, flags=flags)
            for kind, proto, place in public
        ]

    async def close(self) -> None:
        """Nothing is open."""
