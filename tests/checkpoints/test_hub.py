"""A file comes from the hub, here a server on this machine; where none answers, that is said at once."""

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
from huggingface_hub import constants
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from controlnet.checkpoints.hub import hub_file

CONTENT = b"weights"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """Has one file of one repository, told as the hub tells it."""

    def do_HEAD(self) -> None:
        found = self.path in ("/", "/someone/linear/resolve/main/linear.bin")
        self.send_response(200 if found else 404)
        told = {"X-Repo-Commit": COMMIT, "ETag": '"abc"', "Content-Length": str(len(CONTENT))}
        for name, value in told.items() if found else [("X-Error-Code", "EntryNotFound"), ("Content-Length", "0")]:
            self.send_header(name, value)
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        self.wfile.write(CONTENT)

    def log_message(self, *words: object) -> None: ...


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    """An empty cache, and a hub at an address where nobody listens."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = Thread(target=server.serve_forever)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}", raising=False
    )
    yield
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.usefixtures("hub")
def test_a_file_is_downloaded_into_the_cache(tmp_path):
    path = hub_file("someone/linear", "linear.bin")
    assert path.read_bytes() == CONTENT
    assert path.is_relative_to(tmp_path / "cache")


@pytest.mark.usefixtures("hub")
def test_a_file_that_the_hub_lacks_is_an_error_of_its_own():
    with pytest.raises(EntryNotFoundError) as error:
        hub_file("someone/linear", "other.bin")
    assert not isinstance(error.value, LocalEntryNotFoundError)


def test_where_no_hub_answers_a_file_is_asked_for_once(caplog: pytest.LogCaptureFixture):
    with pytest.raises(LocalEntryNotFoundError, match="http://127.0.0.1:9 cannot be reached"):
        hub_file("someone/linear", "linear.bin")
    assert "Retrying" not in caplog.text


def test_offline_nobody_is_asked(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(LocalEntryNotFoundError, match="(?i)cache"):
        hub_file("someone/linear", "linear.bin")
