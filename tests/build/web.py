"""A small web on this machine, with every fault that the real one has: each site is a port, each path a behaviour."""

import asyncio
import gzip
import threading
import zlib
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import cache
from urllib.parse import quote

import cv2
import numpy as np
from aiohttp import web

from controlnet.images import encoded

COUNT = 2500  # pictures, of every site
SIDE = 64
Answer = Callable[["Web", web.Request], Awaitable[web.StreamResponse]]


def jpeg(number: int, side: int = SIDE) -> bytes:
    """A picture that looks like no other."""
    coarse = np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)
    return encoded(cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC), "jpg")


@cache
def bomb(side: int = 30_000) -> bytes:
    """A PNG of a hundred kilobytes, all black, that fills gigabytes when it is decoded."""
    packed = zlib.compressobj()
    rows = b"".join(packed.compress(bytes(1 + side // 8)) for _ in range(side)) + packed.flush()

    def chunk(name: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4) + name + data + zlib.crc32(name + data).to_bytes(4)

    header = side.to_bytes(4) + side.to_bytes(4) + bytes([1, 0, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


PICTURE = jpeg(0)
HTML = b"<!doctype html><title>Not here any more</title>"
SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><script>alert(1)</script></svg>'
POLYGLOT = b"\xff\xd8\xff\xe0" + b"PK\x03\x04" + HTML * 9  # says JPEG, is none

ROBOTS = {
    "open": b"User-agent: *\nAllow: /\n",
    "closed": b"User-agent: *\nDisallow: /\n",
    "us": b"User-agent: *\nAllow: /\n\nUser-agent: Controlnet\nDisallow: /\n",
    "partly": b"User-agent: *\nDisallow: /private/\nDisallow: /*.png$\nAllow: /private/open/\n",
    "untrained": b"User-Agent: *\nContent-Signal: search=yes, ai-train=no\nAllow: /\n",
    "patient": b"User-agent: *\nCrawl-delay: 0.1\n",
}


class Web:
    """The sites by name; `with Web(...) as web` serves them."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        """Site and path of every request, but for robots.txt."""
        self.peak: Counter[str] = Counter()
        self.agents: set[str] = set()
        self.is_mended, self.is_up = False, False
        """Of the site `late`, of the site `down`."""
        self._under_way: Counter[str] = Counter()
        self._times: defaultdict[tuple[str, str], int] = defaultdict(int)
        self.ports: dict[str, int] = {}

    def __enter__(self) -> "Web":
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result()
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self) -> None:
        await self._runner.cleanup()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _start(self) -> None:
        self._runner = web.ServerRunner(web.Server(self._answer), shutdown_timeout=0.1)
        await self._runner.setup()
        for name in [*ROBOTS, "plain", "second", "busy", "flaky", "down", "late", "moving", "robots500", "robots-slow"]:
            site = web.TCPSite(self._runner, "127.0.0.1", 0)
            await site.start()
            [port] = {socket.getsockname()[1] for socket in site._server.sockets}
            self.ports[name] = port
        self._names = {port: name for name, port in self.ports.items()}

    def begin_anew(self) -> None:
        """As when it was opened."""
        self.is_mended, self.is_up = False, False
        self._times.clear()

    def times(self, path: str, site: str) -> int:
        """How often it was asked for."""
        return self._times[site, path]

    @property
    def hosts(self) -> tuple[str, ...]:
        """All sites, as host:port."""
        return tuple(f"127.0.0.1:{port}" for port in self.ports.values())

    def url(self, path: str, site: str = "plain") -> str:
        return f"http://127.0.0.1:{self.ports[site]}/{path}"

    def redirect(self, to: str, status: int = 302, site: str = "plain") -> str:
        return self.url(f"redirect?status={status}&to={quote(to, safe='')}", site)

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        port = request.transport.get_extra_info("sockname")[1]
        site, path = self._names[port], request.path.strip("/")
        if path == "robots.txt":
            return await self._robots(site)
        self.asked.append((site, path))
        self.agents.add(request.headers["User-Agent"])
        self._under_way[site] += 1
        self.peak[site] = max(self.peak[site], self._under_way[site])
        try:
            self._times[site, path] += 1
            return await self._of_site(site, self._times[site, path]) or await self._of_path(request, path)
        finally:
            self._under_way[site] -= 1

    async def _robots(self, site: str) -> web.Response:
        if site == "robots500":
            return web.Response(status=500)
        if site == "robots-slow":
            await asyncio.sleep(60)
        return web.Response(body=ROBOTS[site]) if site in ROBOTS else web.Response(status=404, body=HTML)

    async def _of_site(self, site: str, time: int) -> web.Response | None:
        """What a site has in store before it answers as the others do."""
        if (site == "down" and not self.is_up) or (site == "late" and not self.is_mended):
            return web.Response(status=503)
        if site == "flaky" and time == 1:
            return web.Response(status=500)
        if site == "busy" and time == 1:
            return web.Response(status=429, headers={"Retry-After": "1"})
        if site == "moving":
            await asyncio.sleep(0.02)
        return None

    async def _of_path(self, request: web.BaseRequest, path: str) -> web.StreamResponse:
        kind = path.rpartition("/")[2]
        number, _, suffix = kind.partition(".")
        if suffix == "jpg" and number.isdigit() and int(number) < COUNT:
            return web.Response(body=jpeg(int(number)), content_type="image/jpeg")
        if kind in BODIES:
            return web.Response(body=BODIES[kind](), content_type="image/jpeg")
        if kind in ANSWERS:
            return await ANSWERS[kind](request)
        return web.Response(status=404, body=PICTURE, content_type="image/jpeg")


async def slow(request: web.BaseRequest) -> web.StreamResponse:
    """A byte now and then, as long as one waits."""
    response = web.StreamResponse()
    await response.prepare(request)
    with suppress(ConnectionError):
        for byte in PICTURE:
            await response.write(bytes([byte]))
            await asyncio.sleep(0.1)
    return response


async def endless(request: web.BaseRequest) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    with suppress(ConnectionError):
        while True:
            await response.write(PICTURE * 50)
    return response


async def cut(request: web.BaseRequest) -> web.StreamResponse:
    """More is promised than sent."""
    response = web.StreamResponse(headers={"Content-Length": str(2 * len(PICTURE))})
    await response.prepare(request)
    await response.write(PICTURE)
    request.transport.close()
    return response


async def understated(request: web.BaseRequest) -> web.StreamResponse:
    """More is sent than promised."""
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(PICTURE) // 2}\r\nConnection: close\r\n\r\n".encode()
    request.transport.write(head + PICTURE)
    request.transport.close()
    return web.Response()


async def huge(request: web.BaseRequest) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Length": str(10**12)})
    await response.prepare(request)
    request.transport.close()
    return response


async def zipped(request: web.BaseRequest) -> web.StreamResponse:
    """A hundred megabytes in a hundred kilobytes."""
    return web.Response(body=gzip.compress(bytes(100_000_000), 1), headers={"Content-Encoding": "gzip"})


async def nonsense(request: web.BaseRequest) -> web.StreamResponse:
    request.transport.write(b"220 smtp.example.org\r\n\r\n")
    request.transport.close()
    return web.Response()


async def hung_up(request: web.BaseRequest) -> web.StreamResponse:
    request.transport.close()
    return web.Response()


async def redirect(request: web.BaseRequest) -> web.StreamResponse:
    return web.Response(status=int(request.query["status"]), headers={"Location": request.query["to"]})


async def loop(request: web.BaseRequest) -> web.StreamResponse:
    return web.Response(status=301, headers={"Location": "/loop"})


async def tagged(request: web.BaseRequest) -> web.StreamResponse:
    return web.Response(body=PICTURE, headers={request.query["name"]: request.query["value"]})


async def status(request: web.BaseRequest) -> web.StreamResponse:
    return web.Response(status=int(request.query["code"]), body=PICTURE)


async def mislabelled(request: web.BaseRequest) -> web.StreamResponse:
    return web.Response(body=PICTURE, content_type="text/html")


BODIES: dict[str, Callable[[], bytes]] = {
    "html": lambda: HTML,
    "svg": lambda: SVG,
    "polyglot": lambda: POLYGLOT,
    "truncated": lambda: PICTURE[: len(PICTURE) // 2],
    "empty": lambda: b"",
    "bomb": bomb,
}
ANSWERS = {
    it.__name__: it
    for it in (slow, endless, cut, understated, huge, zipped, nonsense, hung_up, redirect, loop, tagged, status)
} | {"mislabelled": mislabelled}
