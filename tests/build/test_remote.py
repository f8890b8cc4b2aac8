"""A small server that speaks clip-retrieval's protocol over HTTP, and does what such servers do to their clients."""

import base64
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from build import made
from controlnet.build import remote
from controlnet.build.remote import UNREACHABLE, RetrieveRemote
from controlnet.build.rows import Row, identify
from controlnet.build.stage import Context
from controlnet.errors import UserError


@dataclass
class Server:
    """What it holds, what it was asked, and how often each path fails before it answers."""

    size: int = 300
    asked: list[tuple[str, dict]] = field(default_factory=list)
    failures: dict[str, list[int]] = field(default_factory=dict)
    url: str = ""

    def answer(self, path: str, body: dict) -> object:
        if path == "/indices-list":
            return ["shapes"]
        if path == "/metadata":
            return [{"id": id, "metadata": self.metadata(id)} for id in body["ids"]]
        first = len(body.get("text", "")) % 7
        found = [{"id": first + place, "similarity": 1 - place / 1000} for place in range(body["num_result_ids"])]
        found = found[: self.size]
        return [
            {**each, **(self.metadata(each["id"]) if place < body["num_images"] else {})}
            for place, each in enumerate(found)
        ]

    def metadata(self, id: int) -> dict:
        return {"url": f"https://example.org/{id}.jpg", "caption": f"picture {id}"}


@pytest.fixture
def server(monkeypatch) -> Iterator[Server]:
    monkeypatch.setattr(remote, "FIRST_WAIT", 0.01)
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.respond({})

        def do_POST(self) -> None:
            self.respond(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def respond(self, body: dict) -> None:
            state.asked.append((self.path, body))
            failures = state.failures.get(self.path, [])
            status = failures.pop(0) if failures else 200
            data = json.dumps(state.answer(self.path, body)).encode() if status == 200 else b"not now"
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            """Nothing on the terminal."""

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=listening.serve_forever, args=(0.02,), daemon=True).start()
    state.url = f"http://127.0.0.1:{listening.server_port}"
    yield state
    listening.shutdown()
    listening.server_close()


def prompts(*texts: str) -> list[Row]:
    return [Row(identify(text), {"prompt": text}) for text in texts]


def work(server: Server, **options: object):
    return RetrieveRemote(url=server.url, index="shapes", timeout=5, **options).setup(Context())


def queries(server: Server) -> list[dict]:
    return [body for path, body in server.asked if path == "/knn-service"]


def test_rows_are_replaced_by_addresses_with_captions_in_order(server):
    rows = work(server, count=3)(prompts("a", "bb"))
    assert [row.values["url"] for row in rows] == [f"https://example.org/{n}.jpg" for n in (1, 2, 3, 2, 3, 4)]
    assert [row.values["caption"] for row in rows[:2]] == ["picture 1", "picture 2"]
    assert [row.values["similarity"] for row in rows[:3]] == [1, 0.999, 0.998]
    assert len({row.id for row in rows}) == 6  # also of the picture that both found
    assert rows[0].values["parent"] == identify("a")


def test_metadata_beyond_the_first_page_are_asked_for_page_by_page(server):
    rows = work(server, count=250)(prompts("a"))
    assert [row.values["caption"] for row in rows] == [f"picture {n}" for n in range(1, 251)]
    assert [query["num_images"] for query in queries(server)] == [100]
    assert [len(body["ids"]) for path, body in server.asked if path == "/metadata"] == [100, 50]


def test_the_path_of_the_service_may_be_part_of_the_address(server):
    stage = RetrieveRemote(url=f"{server.url}/knn-service", index="shapes", count=1)
    assert len(stage.setup(Context())(prompts("a"))) == 1


def test_a_picture_is_sent_as_its_file(server):
    row = made.row(1)
    work(server, by="image", count=1)([row])
    assert base64.b64decode(queries(server)[0]["image"]) == row.files["image"]
    assert "text" not in queries(server)[0]


def test_what_is_less_similar_than_asked_is_not_taken(server):
    assert len(work(server, count=50, least=0.99)(prompts("a"))) == 11
    [left] = work(server, least=1.0, count=4)(prompts("a"))
    assert left.values["similarity"] == 1


@pytest.mark.parametrize("status", [429, 500, 502, 503])
def test_a_server_that_is_busy_is_asked_again(server, status):
    asking = work(server, count=2)
    server.failures["/knn-service"] = [status] * (remote.ATTEMPTS - 1)
    assert len(asking(prompts("a"))) == 2
    assert len(queries(server)) == remote.ATTEMPTS


def test_a_query_that_is_never_answered_fails_its_row_alone_and_is_tried_later(server):
    asking = work(server, count=2)
    server.failures["/knn-service"] = [502] * remote.ATTEMPTS
    [failed] = asking(prompts("a"))
    assert (failed.status, failed.reason, failed.detail) == ("failed", UNREACHABLE, "status 502, 4 times")
    assert failed.reason in RetrieveRemote.retry_later
    assert len(asking(prompts("a"))) == 2


def test_a_query_that_is_refused_is_not_asked_again(server):
    asking = work(server)
    server.failures["/knn-service"] = [400]
    with pytest.raises(UserError, match="answers status 400: not now"):
        asking(prompts("a"))
    assert len(queries(server)) == 1


def test_a_server_that_is_down_is_an_error_that_names_the_remedy(monkeypatch):
    monkeypatch.setattr(remote, "FIRST_WAIT", 0.01)
    with pytest.raises(UserError, match=r"no clip-retrieval server at http://127\.0\.0\.1:9 .*4 times.*retrieve"):
        RetrieveRemote(url="http://127.0.0.1:9", index="shapes").setup(Context())


def test_an_index_that_the_server_does_not_have_is_an_error_that_tells_those_it_has(server):
    with pytest.raises(UserError, match="has no index 'laion5B'; it has: shapes"):
        RetrieveRemote(url=server.url, index="laion5B").setup(Context())
