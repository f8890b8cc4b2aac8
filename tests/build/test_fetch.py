"""Fetching from a web with every fault: each has its name, bounds are kept, and what sites forbid is left alone."""

import threading
import time
from collections import Counter

import pytest

from build import web as small_web
from build.web import PICTURE, Web
from controlnet import __version__
from controlnet.build.fetch import LATER, Bounds, Fetcher


@pytest.fixture(scope="module")
def web():
    with Web() as web:
        yield web


def bounds(web, **options):
    return Bounds(
        **{"timeout": 2.0, "attempts": 3, "backoff": 0.01, "max_bytes": 500_000, "allowed_hosts": web.hosts} | options
    )


@pytest.fixture(scope="module")
def fetcher(web):
    fetcher = Fetcher(bounds(web))
    yield fetcher
    fetcher.close()


@pytest.mark.parametrize(
    ("path", "reason", "attempts"),
    [
        ("0.jpg", "", 1),
        ("mislabelled", "", 1),
        ("404", "http 404", 1),
        ("status?code=410", "http 410", 1),
        ("status?code=401", "http 401", 1),
        ("status?code=503", "http 503", 3),
        ("status?code=206", "http 206", 1),
        ("endless", "too many bytes", 1),
        ("huge", "too many bytes", 1),
        ("zipped", "too many bytes", 1),
        ("cut", "cut off", 3),
        ("nonsense", "connection", 3),
        ("hung_up", "connection", 3),
        ("loop", "too many redirects", 1),
    ],
)
def test_each_fault_has_its_name_and_only_those_that_may_pass_are_tried_again(web, fetcher, path, reason, attempts):
    [answer] = fetcher.fetch([web.url(path)])
    assert (answer.reason, answer.attempts) == (reason, attempts)
    assert (answer.data == PICTURE) == (reason == "")
    assert (reason in LATER) == (attempts > 1)


def test_a_host_that_sends_a_byte_now_and_then_is_left_in_time(web):
    fetcher = Fetcher(bounds(web, timeout=0.5, attempts=1))
    start = time.monotonic()
    answers = fetcher.fetch([web.url("slow")] * 8)
    assert {answer.reason for answer in answers} == {"timeout"}
    assert time.monotonic() - start < 5


def test_waiting_for_ones_turn_is_no_timeout(web):
    fetcher = Fetcher(bounds(web, per_host=1, timeout=0.5))
    answers = fetcher.fetch([web.url(f"{number}.jpg", "moving") for number in range(60)])  # 20 ms each
    assert {answer.reason for answer in answers} == {""}


@pytest.mark.parametrize("limit", [1, 3])
def test_no_host_sees_more_downloads_at_once_than_allowed(limit):
    with Web() as web:
        Fetcher(bounds(web, per_host=limit)).fetch([web.url(f"{number}.jpg", "moving") for number in range(20)])
        assert web.peak["moving"] == limit


def test_a_slow_host_does_not_hold_up_the_others(web):
    fetcher = Fetcher(bounds(web, connections=4, per_host=2, timeout=0.6, attempts=1, robots=False))
    slow = [web.url("slow", "second")] * 10
    ends = []
    thread = threading.Thread(target=lambda: (fetcher.fetch(slow), ends.append(time.monotonic())))
    thread.start()
    time.sleep(0.2)
    assert {it.reason for it in fetcher.fetch([web.url(f"{number}.jpg") for number in range(50)])} == {""}
    end = time.monotonic()
    thread.join()
    assert end < ends[0]


def test_a_flaky_host_is_asked_again_and_a_busy_one_after_the_time_that_it_wants(web):
    flaky, busy = Fetcher(bounds(web)).fetch([web.url("1.jpg", "flaky"), web.url("1.jpg", "busy")])
    assert (flaky.reason, flaky.attempts, flaky.status) == ("", 2, 200)
    start = time.monotonic()
    [busy] = Fetcher(bounds(web)).fetch([web.url("2.jpg", "busy")])
    assert (busy.reason, busy.attempts) == ("", 2)
    assert time.monotonic() - start >= 1  # backoff alone is 10 ms


def test_waits_double(web):
    start = time.monotonic()
    [answer] = Fetcher(bounds(web, backoff=0.2, attempts=3)).fetch([web.url("1.jpg", "down")])
    assert (answer.reason, answer.attempts, answer.status) == ("http 503", 3, 503)
    assert time.monotonic() - start >= 0.6


def test_redirects_are_followed_from_site_to_site(web, fetcher):
    there = web.url("7.jpg", "second")
    urls = [web.redirect(there, status) for status in (301, 302, 303, 307, 308)]
    urls += [web.redirect("/7.jpg"), web.redirect(web.redirect(there))]
    assert {answer.data for answer in fetcher.fetch(urls)} == {small_web.jpeg(7)}


@pytest.mark.parametrize(
    "to", ["http://127.0.0.1:1/", "http://10.0.0.1/", "http://[::1]/", "file:///etc/passwd", "http://2130706433/",
           "http://localhost/", "http://user:word@example.org/", "ftp://example.org/a.jpg", "http://[", "//0/", "a:b"]
)  # fmt: skip
def test_redirects_that_must_not_be_followed_are_refused(web, fetcher, to):
    [answer] = fetcher.fetch([web.redirect(to)])
    assert answer.reason == "address refused"


def test_a_redirect_to_a_site_that_forbids_it_is_no_way_around_its_robots_txt(web, fetcher):
    [answer] = fetcher.fetch([web.redirect(web.url("0.jpg", "closed"))])
    assert (answer.reason, answer.is_opt_out) == ("robots.txt", True)


@pytest.mark.parametrize(
    ("site", "path", "reason"),
    [
        ("open", "0.jpg", ""),
        ("closed", "0.jpg", "robots.txt"),
        ("us", "0.jpg", "robots.txt"),
        ("untrained", "0.jpg", "robots.txt: no training"),
        ("partly", "private/0.jpg", "robots.txt"),
        ("partly", "private/open/0.jpg", ""),
        ("partly", "0.png", "robots.txt"),
        ("partly", "0.jpg", ""),
        ("robots500", "0.jpg", "robots.txt unreachable"),
    ],
)
def test_robots_txt_is_honoured_and_what_it_forbids_is_never_asked(site, path, reason):
    with Web() as web:
        [answer] = Fetcher(bounds(web)).fetch([web.url(path, site)])
        assert (answer.reason, answer.is_opt_out) == (reason, reason not in ("", "robots.txt unreachable"))
        assert len(web.asked) == (0 if reason else 1)


def test_a_robots_txt_that_does_not_come_forbids_all_for_now(web):
    [answer] = Fetcher(bounds(web, timeout=0.3, attempts=1)).fetch([web.url("0.jpg", "robots-slow")])
    assert (answer.reason, answer.reason in LATER) == ("timeout", True)
    assert "robots.txt" in answer.detail


def test_a_crawl_delay_is_kept(web):
    start = time.monotonic()
    answers = Fetcher(bounds(web)).fetch([web.url(f"{number}.jpg", "patient") for number in range(8)])
    assert {answer.reason for answer in answers} == {""}
    assert time.monotonic() - start >= 0.7


def test_robots_can_be_left_unasked_by_those_who_own_the_site(web):
    fetcher = Fetcher(bounds(web, robots=False))
    urls = [web.url("0.jpg", "closed"), web.url("tagged?name=X-Robots-Tag&value=noai")]
    assert {answer.reason for answer in fetcher.fetch(urls)} == {""}


def test_a_header_that_forbids_is_honoured(web, fetcher):
    headers = {"X-Robots-Tag": "noimageai", "Content-Usage": "train-ai=n", "Content-Signal": "search=yes,ai-train=no"}
    answers = fetcher.fetch([web.url(f"tagged?name={name}&value={value}") for name, value in headers.items()])
    assert [answer.reason for answer in answers] == [
        "X-Robots-Tag: noimageai", "Content-Usage: train-ai=n", "Content-Signal: ai-train=no"
    ]  # fmt: skip
    assert all(answer.is_opt_out and not answer.data for answer in answers)


def test_it_says_who_it_is(web, fetcher):
    fetcher.fetch([web.url("0.jpg")])
    assert web.agents == {f"controlnet/{__version__} (data set builder; honours robots.txt)"}


def test_two_thousand_pictures_come_as_they_are_and_in_order(web, fetcher):
    urls = [web.url(f"{number}.jpg", "plain" if number % 2 else "second") for number in range(2000)]
    answers = fetcher.fetch(urls)
    assert Counter(answer.reason for answer in answers) == {"": 2000}
    assert all(answers[number].data == small_web.jpeg(number) for number in range(0, 2000, 97))


def test_hosts_that_are_not_there_say_so():
    for robots in (True, False):
        fetcher = Fetcher(Bounds(attempts=1, robots=robots, allowed_hosts=("127.0.0.1:9",)))
        assert [answer.reason for answer in fetcher.fetch(["http://127.0.0.1:9/a.jpg"])] == ["connection"]
