"""Pictures for prompts, from a server that speaks clip-retrieval's protocol. Its addresses are to be downloaded.

POST URL/knn-service   a text or a picture -> the nearest: id and similarity of all, metadata of the first page
POST URL/metadata      ids -> their metadata
GET URL/indices-list   the names of its indexes
"""

import base64
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Annotated, Any, ClassVar, Literal

import httpx

from controlnet.annotators.annotator import Range
from controlnet.build.retrieve import replaced
from controlnet.build.rows import Row
from controlnet.build.shards import IMAGE
from controlnet.build.stage import Context, Place, Stage, Work
from controlnet.errors import UserError

PAGE = 100  # pictures whose metadata are asked for at once: two thousand take such a server most of a minute
ATTEMPTS = 4
FIRST_WAIT = 0.25  # seconds; doubled at each attempt
AT_ONCE = 8  # requests; such servers answer some twenty a second
UNREACHABLE = "server does not answer"
TOO_LATE = "server did not answer"  # to a picture, which the failed row has no more: not tried again


class Unanswered(Exception):
    """The server did not answer, however often it was asked."""


class Client:
    """Asks one server, again where it is worth it."""

    def __init__(self, url: str, timeout: float) -> None:
        """UserError for an address where no such server answers."""
        self.url = url.rstrip("/").removesuffix("/knn-service")
        self.http = httpx.Client(timeout=timeout, headers={"User-Agent": "controlnet"})
        try:
            self.indexes: list[str] = list(self.ask("GET", "indices-list"))
        except (Unanswered, UserError) as error:
            raise UserError(
                f"no clip-retrieval server at {self.url} ({error}); start one with `clip-retrieval back`, or search an "
                "index of your own with the stage retrieve"
            ) from error

    def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """The answer as JSON. Unanswered after ATTEMPTS; UserError for what will not be answered at all."""
        for attempt in range(ATTEMPTS):
            try:
                answer = self.http.request(method, f"{self.url}/{path}", json=body)
            except (httpx.TransportError, httpx.InvalidURL) as error:
                told = str(error) or type(error).__name__
            else:
                if answer.status_code == httpx.codes.OK:
                    return _json(answer)
                told = f"status {answer.status_code}"
                if answer.status_code not in (408, 429) and answer.status_code < 500:
                    raise UserError(f"{self.url}/{path} answers {told}: {answer.text[:200]}")
            if attempt + 1 < ATTEMPTS:
                time.sleep(FIRST_WAIT * 2**attempt)
        raise Unanswered(f"{told}, {ATTEMPTS} times")

    def nearest(self, query: Mapping[str, Any], index: str, count: int) -> list[dict[str, Any]]:
        """At most `count` pictures with id, similarity, url and caption, nearest first."""
        body = {**query, "indice_name": index, "modality": "image"}
        found = self.ask("POST", "knn-service", {**body, "num_images": min(PAGE, count), "num_result_ids": count})
        known = {each["id"]: each for each in found}
        rest = iter([id for id, each in known.items() if "url" not in each])
        while page := list(islice(rest, PAGE)):
            for each in self.ask("POST", "metadata", {"ids": page, "indice_name": index}):
                known[each["id"]] = {**each["metadata"], **known[each["id"]]}
        return list(known.values())[:count]


def _json(answer: httpx.Response) -> Any:
    try:
        return answer.json()
    except ValueError as error:
        raise UserError(f"{answer.url} answers no JSON but {answer.text[:60]!r}") from error


@dataclass(frozen=True, kw_only=True)
class RetrieveRemote(Stage):
    """Replaces every row by what a clip-retrieval server finds for its prompt or picture; to be downloaded next."""

    retry_later: ClassVar[frozenset[str]] = frozenset({UNREACHABLE})

    url: str
    """Of the server. There is none by default: the well-known public one is gone."""
    index: str
    """Name of the server's index."""
    count: Annotated[int, Range(1, 10_000)] = 4
    """Pictures for each row."""
    by: Literal["prompt", "caption", "image"] = "prompt"
    """What is searched by."""
    least: Annotated[float, Range(-1, 1)] = -1.0
    """Similarity under which a picture is not taken."""
    aesthetic: Annotated[int, Range(0, 9)] | None = None
    """Aesthetic score towards which the server moves the query; it does not filter."""
    deduplicate: bool = True
    """Whether the server leaves out what it holds for the same picture; it then gives fewer."""
    timeout: Annotated[float, Range(0.1, 3600)] = 60.0
    """Seconds for an answer."""

    @property
    def place(self) -> Place:
        return "network"

    def setup(self, context: Context) -> Work:
        client = Client(self.url, self.timeout)
        if self.index not in client.indexes:
            raise UserError(f"{client.url} has no index {self.index!r}; it has: {', '.join(client.indexes)}")

        def retrieve(rows: Sequence[Row]) -> list[Row]:
            with ThreadPoolExecutor(AT_ONCE) as pool:
                return [
                    made for several in pool.map(lambda row: list(self._ask(client, row)), rows) for made in several
                ]

        return retrieve

    def _ask(self, client: Client, row: Row) -> Iterator[Row]:
        try:
            found = client.nearest(self._query(row), self.index, self.count)
        except Unanswered as error:
            yield row.failed(TOO_LATE if self.by == IMAGE else UNREACHABLE, str(error))
            return
        near = [(float(each["similarity"]), each) for each in found if each.get("url")]
        yield from replaced(row, [(similarity, told) for similarity, told in near if similarity >= self.least])

    def _query(self, row: Row) -> dict[str, Any]:
        asked = {"deduplicate": self.deduplicate, "aesthetic_weight": 0.5 if self.aesthetic else 0.0}
        asked |= {"aesthetic_score": self.aesthetic} if self.aesthetic else {}
        if self.by == IMAGE:
            return {**asked, "image": base64.b64encode(row.files[IMAGE]).decode()}
        return {**asked, "text": row.get(self.by, "")}
