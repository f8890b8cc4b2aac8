"""Pictures from the web, by the URLs of rows."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from controlnet.annotators.annotator import Range
from controlnet.build.fetch import LATER, Answer, Bounds, Fetcher
from controlnet.build.pictures import inspected
from controlnet.build.rows import Row
from controlnet.build.stage import Context, Place, Stage, Work


@dataclass(frozen=True, kw_only=True)
class Download(Stage):
    """Fetches the picture of every row that has a url; what a site does not want is left out, and says so."""

    rows_at_once = 4096
    retry_later = frozenset(LATER)

    per_host: Annotated[int, Range(1, 256)] = 8
    """Downloads under way from one host."""
    attempts: Annotated[int, Range(1, 10)] = 2
    """How often a host that fails for now is asked; those that still fail are asked once more at the end."""
    backoff: Annotated[float, Range(0, 60)] = 1.0
    """Seconds before the second attempt, doubled before each further one."""
    timeout: Annotated[float, Range(0.1, 3600)] = 10.0
    """Seconds for the answers of one attempt, redirects and all."""
    max_bytes: Annotated[int, Range(1, 2**31)] = 20_000_000
    robots: bool = True
    """Honour what sites say: robots.txt, X-Robots-Tag, Content-Signal and Content-Usage."""
    allowed_hosts: tuple[str, ...] = ()
    """host:port that may be asked although they are not on the public internet: your own server."""

    @property
    def place(self) -> Place:
        return "network"

    def setup(self, context: Context) -> Work:
        names = ("per_host", "attempts", "backoff", "timeout", "max_bytes", "robots", "allowed_hosts")
        chosen = {name: getattr(self, name) for name in names}
        fetcher = Fetcher(Bounds(connections=context.connections, **chosen))

        def download(rows: Sequence[Row]) -> list[Row]:
            answers = fetcher.fetch([row.get("url", "") for row in rows])
            return [_received(row, answer) for row, answer in zip(rows, answers, strict=True)]

        return download


def _received(row: Row, answer: Answer) -> Row:
    """The row with what came; its own sha256, if it had one, must be that of the file."""
    expected = row.get("sha256")
    row = row.having(http_status=answer.status, attempts=row.get("attempts", 0) + answer.attempts)
    if answer.is_opt_out:
        return row.having(opt_out=answer.reason).dropped(answer.reason, answer.detail)
    if answer.reason:
        return row.failed(answer.reason, answer.detail)
    if expected and hashlib.sha256(answer.data).hexdigest() != expected:
        return row.failed("another file", f"SHA-256 is not {expected}")
    return inspected(row, answer.data)
