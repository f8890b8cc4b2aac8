"""What many visitors at once, and one who never goes, do to a studio."""

from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from controlnet.studio.limits import LIMITS
from controlnet.studio.server import SESSIONS
from studio_server import asked, called, fetched, opened

CLIENTS = 50
JOBS = 300
FIRST = SESSIONS + 16  # jobs after which all is in memory that will be
GROWTH = 50 * 2**20  # bytes

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def studio(tmp_path_factory):
    with opened(tmp_path_factory.mktemp("studio")) as studio:
        yield studio


def memory(process: int) -> int:
    """Bytes that a process holds."""
    return int(psutil.Process(process).memory_info().rss)


def test_of_many_at_once_those_who_are_let_in_get_their_picture_and_the_others_a_word(studio):
    values = asked(studio, "generate", prompt="gold circle with navy background", steps=4)
    assert called(studio, "generate", values)[1].count("event: complete") == 1
    with ThreadPoolExecutor(CLIENTS) as clients:
        answers = list(clients.map(lambda _: called(studio, "generate", values), range(CLIENTS)))
    served = [events for status, events in answers if status == 200]
    refused = [words for status, words in answers if status != 200]
    assert {status for status, _ in answers} == {200, 503}
    assert LIMITS.waiting <= len(served) < CLIENTS
    assert all("event: complete" in events for events in served)
    assert all("full" in words for words in refused)
    assert fetched(studio.url)[0] == 200
    assert "Traceback" not in studio.log


def test_memory_does_not_grow_with_the_jobs(studio):
    values = asked(studio, "generate", prompt="gold circle with navy background", steps=1)
    for _ in range(FIRST):
        called(studio, "generate", values)
    before = memory(studio.process.pid)
    for _ in range(JOBS):
        assert "event: complete" in called(studio, "generate", values)[1]
    assert memory(studio.process.pid) - before < GROWTH
