"""The door of the server: who may ask, how much, and what a page may load.

- A request from another site's page is refused (its `Origin` is not where it goes), and so is one under a name that is
  not this server's (`Host`: DNS rebinding), while the server listens on this machine alone.
- A request that says it is too large is refused before it is read.
- Pages may load from here alone: no font, script or picture comes from elsewhere.
"""

from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
MOST_HEARD = 2**30  # bytes of a refused request
LOCAL = ("127.0.0.1", "localhost", "::1")
# Gradio's front end makes functions of templates ('unsafe-eval') and writes styles
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; "
    "worker-src 'self' blob:; frame-src 'self' data: blob:; object-src 'none'; base-uri 'self'; frame-ancestors 'self'"
)
HEADERS = [
    (b"content-security-policy", POLICY.encode()),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
]


@dataclass(frozen=True)
class Guard:
    """ASGI middleware."""

    app: Callable[[Scope, Receive, Send], Awaitable[None]]
    is_local: bool
    largest_body: int

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        refusal = refused({name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}, self)
        if refusal is not None and scope["type"] == "http":
            await _heard_out(receive)
            await _answer(send, *refusal)
        elif refusal is None:
            await self.app(scope, receive, _with_headers(send))


def refused(headers: MutableMapping[str, str], guard: Guard) -> tuple[int, str] | None:
    """Status and words for a request that is not let in."""
    host = headers.get("host", "")
    if guard.is_local and urlsplit(f"//{host}").hostname not in LOCAL:
        return 403, f"this studio answers on this machine alone, not as {host[:100]!r}"
    origin = headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != host:
        return 403, f"a page of {origin[:100]!r} may not use this studio"
    length = headers.get("content-length", "0")
    if not length.isdigit() or int(length) > guard.largest_body:
        return 413, f"{length[:20]} bytes; expected at most {guard.largest_body}"
    return None


async def _heard_out(receive: Receive) -> None:
    """What is being sent, unkept: many a client reads no answer before it has sent all."""
    heard, more = 0, True
    while more and heard < MOST_HEARD:
        message = await receive()
        heard += len(message.get("body", b""))
        more = bool(message.get("more_body", False))


async def _answer(send: Send, status: int, words: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close"), *HEADERS]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": words.encode()})


def _with_headers(send: Send) -> Send:
    async def sent(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", []), *HEADERS]
        await send(message)

    return sent
