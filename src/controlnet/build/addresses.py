"""Which addresses may be asked for a picture: those of the public internet, and no others.

A list of URLs from elsewhere must not make this machine read its own network: names are resolved here, every address
of every hop is judged, and it is the judged address that is connected to.
"""

import asyncio
import ipaddress
import re
import socket
from collections.abc import Collection
from typing import Any

from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from controlnet.errors import UserError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")  # RFC 4291, 2.4 as IANA has assigned it so far
# what tables of older Pythons take for public: relays to 6to4 (RFC 7526), documentation (RFC 9637)
SPECIAL = (ipaddress.IPv4Network("192.88.99.0/24"), ipaddress.IPv6Network("3fff::/20"))
# prefixes of IPv6 behind which an IPv4 address is reached, and the bits by which that is shifted
TRANSLATED = (
    (ipaddress.IPv6Network("64:ff9b::/96"), 0),  # NAT64, RFC 6052
    (ipaddress.IPv6Network("2002::/16"), 80),  # 6to4, RFC 3056
)
NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*", re.IGNORECASE)  # as a host's last label: an address, WHATWG URL 3.5
SCHEMES = ("http", "https")


class Refused(UserError):
    """An address that must not be asked."""


def is_public(text: str) -> bool:
    """Whether an IP address (without brackets) belongs to the public internet. ValueError for what is none."""
    address: Address = ipaddress.ip_address(text.partition("%")[0])
    return all(_is_public(it) for it in _meant(address))


def _is_public(address: Address) -> bool:
    if isinstance(address, ipaddress.IPv6Address) and address not in GLOBAL_UNICAST:
        return False
    if any(address in network for network in SPECIAL):
        return False
    return address.is_global and not address.is_multicast and not address.is_reserved


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
        host, port = url.raw_host, url.port
    except ValueError as error:
        raise Refused(f"{text!r} is no address: {error}") from error
    if url.scheme not in SCHEMES or not host:
        raise Refused(f"{text!r} is no address of the web; expected http:// or https://")
    if url.user or url.password:
        raise Refused(f"{text!r} carries a user name or password")
    if f"{host}:{port}" not in allowed and not _may_be_public(host):
        raise Refused(f"{host} is not an address of the public internet")
    return url


def _may_be_public(host: str) -> bool:
    """Whether a host is a public address, or a name, which the resolver judges; other spellings of numbers are not."""
    try:
        return is_public(host)
    except ValueError:
        return ":" not in host and not NUMBER.fullmatch(host.rstrip(".").rpartition(".")[2])


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
