"""Which addresses may be asked for a picture: those of the public internet, and no others.

A list of URLs from elsewhere must not make this machine read its own network: names are resolved here, every address
of every hop is judged, and it is the judged address that is connected to.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Collection
from typing import Any

from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from controlnet.errors import UserError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# prefixes of IPv6 behind which an IPv4 address is reached, and the bits by which that is shifted
TRANSLATED = (
    (ipaddress.IPv6Network("64:ff9b::/96"), 0),  # NAT64, RFC 6052
    (ipaddress.IPv6Network("64:ff9b:1::/48"), 0),  # RFC 8215
    (ipaddress.IPv6Network("::/96"), 0),  # compatible, RFC 4291
    (ipaddress.IPv6Network("2002::/16"), 80),  # 6to4, RFC 3056
)


class Refused(UserError):
    """An address that must not be asked."""


def is_public(text: str) -> bool:
    """Whether an IP address (without brackets) belongs to the public internet."""
    address: Address = ipaddress.ip_address(text.partition("%")[0])
    return all(it.is_global and not it.is_multicast and not it.is_reserved for it in _meant(address))


def _meant(address: Address) -> list[Address]:
    """The address itself, or the IPv4 addresses that it stands for."""
    if isinstance(address, ipaddress.IPv4Address):
        return [address]
    if address.ipv4_mapped:
        return [address.ipv4_mapped]
    if address.teredo:
        return list(address.teredo)
    for network, shift in TRANSLATED:
        if address in network:
            return [ipaddress.IPv4Address(int(address) >> shift & 0xFFFFFFFF)]
    return [address]


def check_url(text: str, allowed: Collection[str] = ()) -> URL:
    """The URL, if its form is one that may be asked; `allowed` are hosts (host:port) that are, wherever they are.

    Refused for what is no http(s) address or carries credentials, and for literal addresses that are not public.
    """
    try:
        url = URL(text)
        host, port = url.host, url.port
    except ValueError as error:
        raise Refused(f"{text!r} is no address: {error}") from error
    if url.scheme not in ("http", "https") or not host:
        raise Refused(f"{text!r} is no address of the web; expected http:// or https://")
    if url.user or url.password:
        raise Refused(f"{text!r} carries a user name or password")
    if f"{host}:{port}" in allowed:
        return url
    try:
        literal = is_public(host)
    except ValueError:
        return url  # a name, which the resolver judges
    if not literal:
        raise Refused(f"{host} is not an address of the public internet")
    return url


class PublicResolver(AbstractResolver):
    """Names -> addresses, of which all must be public."""

    def __init__(self, allowed: Collection[str] = ()) -> None:
        self.allowed = allowed

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        loop = asyncio.get_running_loop()
        infos = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, family=family)
        found: list[Any] = []
        for kind, _, protocol, _, where in infos:
            address = str(where[0])
            if f"{host}:{port}" not in self.allowed and not is_public(address):
                raise Refused(f"{host} leads to {address}, which is not an address of the public internet")
            found.append(
                {"hostname": host, "host": address, "port": port, "family": kind, "proto": protocol, "flags": 0}
            )
        return found

    async def close(self) -> None:
        """Nothing is kept open."""
