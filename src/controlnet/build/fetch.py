"""Files from the web: many at once, few from each host, within bounds of bytes and time, and only where it is allowed.

Everything that can go wrong has a name, which says whether asking again later may help.
"""

import asyncio
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar
from urllib.robotparser import RobotFileParser

import aiohttp
from yarl import URL

from controlnet import __version__
from controlnet.build.addresses import PublicResolver, Refused, check_url
from controlnet.build.robots import AGENT, LARGEST, REFUSES_ALL, opt_out, rules

USER_AGENT = f"{AGENT}/{__version__} (data set builder; honours robots.txt)"
AGAIN = {408, 425, 429, 500, 502, 503, 504}  # statuses that may be others later
LATER = {"timeout", "connection", "dns", "robots.txt unreachable"} | {f"http {status}" for status in AGAIN}
REDIRECTS = {301, 302, 303, 307, 308}
LONGEST_WAIT = 30.0  # seconds, whatever Retry-After or a crawl delay asks for

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """How much is asked of a host, and taken from it."""

    connections: int = 64
    per_host: int = 8
    attempts: int = 3
    backoff: float = 1.0
    """Seconds before the second attempt; twice as long before each further one."""
    timeout: float = 30.0
    """Seconds for one attempt, redirects and all."""
    max_bytes: int = 20_000_000
    redirects: int = 5
    robots: bool = True
    allowed_hosts: Collection[str] = ()
    """host:port that may be asked although they are not public."""


@dataclass(frozen=True)
class Answer:
    """What became of a URL: its bytes, or why there are none."""

    data: bytes = field(default=b"", repr=False)
    reason: str = ""
    detail: str = ""
    status: int | None = None
    attempts: int = 1
    is_opt_out: bool = False
    wait: float = 0.0
    """Seconds that the host asks to wait."""


class Stopped(Exception):
    """The end of an attempt, with its answer."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.reason)
        self.answer = answer


@dataclass
class _Host:
    """A site, by scheme, host and port."""

    room: asyncio.Semaphore
    robots: "asyncio.Task[RobotFileParser] | None" = None
    free_at: float = 0.0
    """When it may be asked next, if it asks for a delay between requests."""


class Fetcher:
    """One loop in a thread of its own, shared by all shards of this process."""

    def __init__(self, bounds: Bounds) -> None:
        self.bounds = bounds
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="fetcher", daemon=True).start()
        self._hosts: dict[URL, _Host] = defaultdict(lambda: _Host(asyncio.Semaphore(bounds.per_host)))
        self._session = self._run(self._open())

    def fetch(self, urls: Sequence[str]) -> list[Answer]:
        """The answers to all of them, in their order."""
        return self._run(self._all(urls))

    def _run(self, coroutine: "asyncio._CoroutineLike[T]") -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    async def _open(self) -> aiohttp.ClientSession:
        self._room = asyncio.Semaphore(self.bounds.connections)
        resolver = PublicResolver(self.bounds.allowed_hosts)
        connector = aiohttp.TCPConnector(limit=self.bounds.connections, resolver=resolver, ttl_dns_cache=300)
        return aiohttp.ClientSession(
            connector=connector, headers={"User-Agent": USER_AGENT}, cookie_jar=aiohttp.DummyCookieJar()
        )

    async def _all(self, urls: Sequence[str]) -> list[Answer]:
        return list(await asyncio.gather(*map(self._patiently, urls)))

    async def _patiently(self, url: str) -> Answer:
        """One URL, asked again as long as that may help."""
        answer = Answer()
        for attempt in range(1, self.bounds.attempts + 1):
            answer = replace(await self._once(url), attempts=attempt)
            if answer.reason not in LATER or attempt == self.bounds.attempts:
                break
            await asyncio.sleep(min(LONGEST_WAIT, max(answer.wait, self.bounds.backoff * 2 ** (attempt - 1))))
        return answer

    async def _once(self, text: str) -> Answer:
        try:
            async with self._room, asyncio.timeout(self.bounds.timeout):
                return await self._follow(check_url(text, self.bounds.allowed_hosts))
        except Stopped as stopped:
            return stopped.answer
        except Refused as refused:
            return Answer(reason="address refused", detail=str(refused))
        except TimeoutError:
            return Answer(reason="timeout", detail=f"no whole answer within {self.bounds.timeout:g} s")
        except aiohttp.ClientConnectorDNSError as error:
            return _of_dns(error)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            if isinstance(cause := error.__cause__, Refused):
                return Answer(reason="address refused", detail=str(cause))
            return Answer(reason="connection", detail=f"{type(error).__name__}: {error}")

    async def _follow(self, url: URL) -> Answer:
        for _ in range(self.bounds.redirects + 1):
            host = self._hosts[url.origin()]
            await self._ask_permission(host, url)
            async with host.room:
                answer = await self._get(url)
            if isinstance(answer, Answer):
                return answer
            url = check_url(str(answer), self.bounds.allowed_hosts)
        return Answer(reason="too many redirects", detail=f"more than {self.bounds.redirects}")

    async def _get(self, url: URL, is_picture: bool = True) -> Answer | URL:
        """The answer of one host, or where it sends us."""
        async with self._session.get(url, allow_redirects=False) as response:
            status = response.status
            if status in REDIRECTS and "Location" in response.headers:
                return url.join(URL(response.headers["Location"]))
            if status != 200:
                return Answer(reason=f"http {status}", status=status, wait=_retry_after(response))
            tags = response.headers.getall("X-Robots-Tag", [])
            if is_picture and self.bounds.robots and (tag := opt_out(tags)):
                return Answer(reason=f"X-Robots-Tag: {tag}", status=status, is_opt_out=True)
            return Answer(await self._body(response, self.bounds.max_bytes), status=status)

    async def _body(self, response: aiohttp.ClientResponse, most: int) -> bytes:
        if (response.content_length or 0) > most:
            raise Stopped(
                Answer(reason="too many bytes", detail=f"{response.content_length:,}", status=response.status)
            )
        parts, size = [], 0
        async for part in response.content.iter_any():
            parts.append(part)
            size += len(part)
            if size > most:
                raise Stopped(Answer(reason="too many bytes", detail=f"more than {most:,}", status=response.status))
        return b"".join(parts)

    async def _ask_permission(self, host: _Host, url: URL) -> None:
        if not self.bounds.robots:
            return
        if host.robots is None:
            host.robots = asyncio.create_task(self._robots(url.origin()))
        robots = await asyncio.shield(host.robots)
        if not robots.can_fetch(AGENT, str(url)):
            unreachable = getattr(robots, "is_unreachable", False)
            reason = "robots.txt unreachable" if unreachable else "robots.txt"
            raise Stopped(Answer(reason=reason, detail=str(url.origin()), is_opt_out=not unreachable))
        if delay := min(LONGEST_WAIT, float(robots.crawl_delay(AGENT) or 0)):
            start = max(host.free_at, time.monotonic())
            host.free_at = start + delay
            await asyncio.sleep(start - time.monotonic())

    async def _robots(self, origin: URL) -> RobotFileParser:
        """A site's rules: none where there is no robots.txt, all forbidden while it cannot be had."""
        url = origin.with_path("/robots.txt")
        try:
            for _ in range(self.bounds.redirects + 1):
                answer = await self._get(check_url(str(url), self.bounds.allowed_hosts), is_picture=False)
                if isinstance(answer, Answer):
                    break
                url = answer
            else:
                return rules("")
        except (aiohttp.ClientError, OSError, Refused, Stopped, TimeoutError):
            return _unreachable()
        if answer.status == 200:
            return rules(answer.data[:LARGEST].decode("utf-8", "replace"))
        return _unreachable() if (answer.status or 500) >= 500 or answer.status == 429 else rules("")


def _unreachable() -> RobotFileParser:
    parser = rules(REFUSES_ALL)
    parser.is_unreachable = True  # type: ignore[attr-defined]
    return parser


def _of_dns(error: aiohttp.ClientConnectorDNSError) -> Answer:
    """A name that does not exist stays so; a name server that does not answer may do so later."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, Refused | socket.gaierror):
        cause = cause.__cause__ or cause.__context__
    if isinstance(cause, Refused):
        return Answer(reason="address refused", detail=str(cause))
    again = isinstance(cause, socket.gaierror) and cause.errno == socket.EAI_AGAIN
    return Answer(reason="dns" if again else "no such host", detail=str(error))


def _retry_after(response: aiohttp.ClientResponse) -> float:
    said = response.headers.get("Retry-After", "")
    return float(said) if said.isdigit() else 0.0
