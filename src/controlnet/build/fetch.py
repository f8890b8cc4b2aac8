"""Files from the web: many at once, few from each host, within bounds of bytes and time, and only where it is allowed.

Everything that can go wrong has a name, which says whether asking again later may help.
"""

import asyncio
import socket
import threading
import time
import weakref
from collections.abc import Collection, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import aiohttp
from yarl import URL

from controlnet import __version__
from controlnet.build.addresses import PublicResolver, Refused, check_url
from controlnet.build.robots import AGENT, LARGEST, NO_RULES, Rules, opt_out, rules

HEADERS = {
    "User-Agent": f"{AGENT}/{__version__} (data set builder; honours robots.txt)",
    "Accept": "image/*,*/*;q=0.5",
    "Accept-Encoding": "identity",  # pictures are compressed already
}
AGAIN = {408, 425, 429, 500, 502, 503, 504}  # statuses that may be others later
UNREACHABLE = "robots.txt unreachable"
TOO_MANY = "too many redirects"
LATER = {"timeout", "connection", "cut off", "dns", UNREACHABLE} | {f"http {status}" for status in AGAIN}
REDIRECTS = {301, 302, 303, 307, 308}
LONGEST_WAIT = 30.0  # seconds, whatever Retry-After or a crawl delay asks for
ROBOTS_KEPT = 24 * 3600.0  # seconds, the most that RFC 9309 allows
NAMES_AT_ONCE = 32  # threads that wait for name servers
HOSTS_KEPT = 20_000  # sites of which rules are remembered

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """How much is asked of a host, and taken from it."""

    connections: int = 64
    per_host: int = 8
    attempts: int = 2
    backoff: float = 1.0
    """Seconds before the second attempt; twice as long before each further one."""
    timeout: float = 10.0
    """Seconds for the answers of one attempt, redirects and all; waiting for one's turn is not counted."""
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


@dataclass
class _Host:
    """A site, by scheme, host and port."""

    room: asyncio.Semaphore
    rules: "asyncio.Task[Rules | Answer] | None" = None
    rules_until: float = float("inf")
    delay: float = 0.0
    """Seconds that it wants between requests."""
    free_at: float = 0.0
    """When it may be asked next."""
    guests: int = 0
    """Downloads that are waiting for it, or under way."""


class Fetcher:
    """One loop in a thread of its own, shared by all shards of this process."""

    def __init__(self, bounds: Bounds) -> None:
        self.bounds = bounds
        self._loop = asyncio.new_event_loop()
        self._loop.set_default_executor(ThreadPoolExecutor(NAMES_AT_ONCE, "names"))
        threading.Thread(target=_live, args=[self._loop], name="fetcher", daemon=True).start()
        self._hosts: dict[URL, _Host] = {}
        self._room = asyncio.Semaphore(bounds.connections)
        self._session = self._run(self._open())
        self.close = weakref.finalize(self, _close, self._loop, self._session)

    def fetch(self, urls: Sequence[str]) -> list[Answer]:
        """The answers to all of them, in their order."""
        return self._run(self._all(urls))

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    async def _open(self) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(
            resolver=PublicResolver(self.bounds.allowed_hosts),
            limit=0,  # ours is `_room`, for which nobody waits in vain
            ttl_dns_cache=300,
            keepalive_timeout=1,  # or idle connections to thousands of hosts use up the process's files
        )
        return aiohttp.ClientSession(
            connector=connector,
            headers=HEADERS,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None),
        )

    async def _all(self, urls: Sequence[str]) -> list[Answer]:
        return list(await asyncio.gather(*map(self._patiently, urls)))

    async def _patiently(self, url: str) -> Answer:
        """One URL, asked again as long as that may help."""
        for attempt in range(1, self.bounds.attempts + 1):
            answer = replace(await self._once(url), attempts=attempt)
            if answer.reason not in LATER or attempt == self.bounds.attempts:
                break
            await asyncio.sleep(min(LONGEST_WAIT, max(answer.wait, self.bounds.backoff * 2 ** (attempt - 1))))
        return answer

    async def _once(self, text: str) -> Answer:
        try:
            return await self._follow(check_url(text, self.bounds.allowed_hosts))
        except Refused as refused:
            return Answer(reason="address refused", detail=str(refused))

    async def _follow(self, url: URL) -> Answer:
        left = self.bounds.timeout
        for _ in range(self.bounds.redirects + 1):
            host = self._host(url)
            host.guests += 1
            try:
                if forbidden := await self._forbidden(host, url):
                    return forbidden
                await _turn(host)
                async with host.room, self._room:
                    start = time.monotonic()
                    answer = await self._ask(url, left)
                    left -= time.monotonic() - start
            finally:
                host.guests -= 1
            if isinstance(answer, Answer):
                host.free_at = max(host.free_at, time.monotonic() + min(LONGEST_WAIT, answer.wait))
                return answer
            url = answer
        return Answer(reason=TOO_MANY, detail=f"more than {self.bounds.redirects}")

    def _host(self, url: URL) -> _Host:
        """The site; when too many are known, those that nobody waits for are forgotten."""
        origin = url.origin()
        if origin not in self._hosts:
            if len(self._hosts) >= HOSTS_KEPT:
                self._hosts = {name: host for name, host in self._hosts.items() if host.guests}
            self._hosts[origin] = _Host(asyncio.Semaphore(self.bounds.per_host))
        return self._hosts[origin]

    async def _ask(self, url: URL, seconds: float, is_picture: bool = True) -> Answer | URL:
        """The answer of one host, or where it sends us; whatever goes wrong is an answer too."""
        try:
            async with asyncio.timeout(seconds):
                return await self._get(url, is_picture)
        except Refused as refused:
            return Answer(reason="address refused", detail=str(refused))
        except TimeoutError:
            return Answer(reason="timeout", detail=f"no whole answer within {self.bounds.timeout:g} s")
        except aiohttp.ClientConnectorDNSError as error:
            return _of_dns(error)
        except (aiohttp.ClientSSLError, ValueError) as error:
            return Answer(reason="no valid connection", detail=f"{type(error).__name__}: {error}")
        except aiohttp.ClientPayloadError as error:
            return Answer(reason="cut off", detail=str(error))
        except (aiohttp.ClientError, OSError) as error:
            return Answer(reason="connection", detail=f"{type(error).__name__}: {error}")

    async def _get(self, url: URL, is_picture: bool) -> Answer | URL:
        async with self._session.get(url, allow_redirects=False) as response:
            status = response.status
            if status in REDIRECTS and "Location" in response.headers:
                return check_url(_joined(url, response.headers["Location"]), self.bounds.allowed_hosts)
            if status != 200:
                return Answer(reason=f"http {status}", status=status, wait=_retry_after(response))
            if is_picture and self.bounds.robots and (said := opt_out(response.headers)):
                return Answer(reason=said, status=status, is_opt_out=True)
            return await self._body(response, self.bounds.max_bytes if is_picture else LARGEST, is_picture)

    async def _body(self, response: aiohttp.ClientResponse, most: int, is_whole: bool) -> Answer:
        """The bytes of an answer, of which there may be so many; where it need not be `is_whole`, the first ones."""
        told = response.content_length or 0
        parts, size = [], 0
        if told <= most or not is_whole:
            async for part in response.content.iter_any():
                parts.append(part)
                size += len(part)
                if size > most:
                    break
        if max(told, size) > most and is_whole:
            return Answer(reason="too many bytes", detail=f"more than {most:,}", status=response.status)
        return Answer(b"".join(parts)[:most], status=response.status)

    async def _forbidden(self, host: _Host, url: URL) -> Answer | None:
        """Why we may not have an address of a site; None if we may."""
        if not self.bounds.robots:
            return None
        if host.rules is None or time.monotonic() > host.rules_until:
            host.rules_until = float("inf")
            host.rules = asyncio.create_task(self._rules(host, url.origin()))
        known = await host.rules
        if isinstance(known, Answer):
            return known
        reason = known.forbid(url)
        return Answer(reason=reason, detail=str(url.origin()), is_opt_out=True) if reason else None

    async def _rules(self, host: _Host, origin: URL) -> Rules | Answer:
        """A site's rules; none where there is no robots.txt, no access while that can't be had (RFC 9309, 2.3.1)."""
        answer = await self._robots_txt(origin.with_path("/robots.txt"))
        if answer.status == 200 and not answer.reason:
            found = rules(answer.data.decode("utf-8", "replace"))
        elif answer.reason == TOO_MANY or (400 <= (answer.status or 0) < 500 and answer.status != 429):
            found = NO_RULES
        else:
            host.rules_until = time.monotonic() + self.bounds.backoff
            # a host that does not answer at all would not have answered for the picture either
            reason = UNREACHABLE if answer.status is not None else answer.reason
            return Answer(reason=reason, detail=f"{origin}/robots.txt: {answer.detail or answer.reason}")
        host.rules_until, host.delay = time.monotonic() + ROBOTS_KEPT, min(LONGEST_WAIT, found.delay)
        return found

    async def _robots_txt(self, url: URL) -> Answer:
        for _ in range(self.bounds.redirects + 1):
            async with self._room:
                answer = await self._ask(url, self.bounds.timeout, is_picture=False)
            if isinstance(answer, Answer):
                return answer
            url = answer
        return Answer(reason=TOO_MANY)


def _live(loop: asyncio.AbstractEventLoop) -> None:
    loop.run_forever()
    loop.close()


def _close(loop: asyncio.AbstractEventLoop, session: aiohttp.ClientSession) -> None:
    async def end() -> None:
        await session.close()
        loop.stop()

    asyncio.run_coroutine_threadsafe(end(), loop)


async def _turn(host: _Host) -> None:
    """Wait until a host may be asked, as long after the request before as it wants."""
    now = time.monotonic()
    start = max(host.free_at, now)
    host.free_at = start + host.delay
    if start > now:
        await asyncio.sleep(start - now)


def _joined(url: URL, location: str) -> str:
    try:
        return str(url.join(URL(location)))
    except ValueError as error:
        raise Refused(f"{url} leads to {location!r}, which is no address: {error}") from error


def _of_dns(error: aiohttp.ClientConnectorDNSError) -> Answer:
    """A name that does not exist stays so; a name server that does not answer may do so later."""
    cause = error.__cause__ or error.__context__
    again = isinstance(cause, socket.gaierror) and cause.errno == socket.EAI_AGAIN
    return Answer(reason="dns" if again else "no such host", detail=str(error))


def _retry_after(response: aiohttp.ClientResponse) -> float:
    """Seconds to wait, from a number or a date (RFC 9110, 10.2.3); 0 where neither is given."""
    said = response.headers.get("Retry-After", "")
    if said.isdigit():
        return float(said)
    try:
        return max(0.0, parsedate_to_datetime(said).timestamp() - time.time())
    except ValueError:
        return 0.0
