"""Builds from a web with every fault: what comes is checked, what does not says why, and nothing is lost."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from build import web as small_web
from build.web import Web, jpeg
from controlnet.build.counts import Counts
from controlnet.build.download import Download
from controlnet.build.engine import Threads
from controlnet.build.recipe import make_recipe, read_recipe
from controlnet.build.retry import RETRIED
from controlnet.build.rows import Row, identify
from controlnet.build.run import build
from controlnet.build.shards import Shard, rows_in
from controlnet.build.stage import Context

FAST = {"timeout": 2.0, "backoff": 0.01, "attempts": 2, "max_bytes": 3_000_000}


@pytest.fixture(scope="module")
def web():
    with Web() as web:
        yield web


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def download(web, *rows, **options):
    return Download(**{**FAST, "allowed_hosts": web.hosts, **options}).setup(Context())(rows)


def test_a_picture_comes_with_all_that_is_known_of_it(web):
    [row] = download(web, Row("a", {"url": web.url("3.jpg"), "attempts": 2}))
    assert row.files == {"image": jpeg(3)}
    known = {name: row.values[name] for name in ("http_status", "attempts", "sha256", "format", "width", "height")}
    sha256 = hashlib.sha256(jpeg(3)).hexdigest()
    assert known == {"http_status": 200, "attempts": 3, "sha256": sha256, "format": "jpg", "width": 64, "height": 64}


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("html", "no picture"),
        ("svg", "no picture"),
        ("empty", "no picture"),
        ("polyglot", "broken picture"),
        ("truncated", "broken picture"),
        ("understated", "connection"),
        ("bomb", "broken picture"),
    ],
)
def test_what_comes_is_looked_at(web, path, reason):
    [row] = download(web, Row("a", {"url": web.url(path)}))
    assert (row.status, row.reason, row.files) == ("failed", reason, {})


def test_a_bomb_is_refused_by_its_header(web):
    start = time.monotonic()
    [row] = download(web, Row("a", {"url": web.url("bomb")}))
    assert "900000000 pixels" in row.detail
    assert time.monotonic() - start < 5  # decoded it would be 2.7 GB


def test_another_file_than_was_promised_is_not_taken(web):
    urls = {"right": hashlib.sha256(jpeg(4)).hexdigest(), "wrong": hashlib.sha256(jpeg(5)).hexdigest()}
    rows = [Row(name, {"url": web.url("4.jpg"), "sha256": sha256}) for name, sha256 in urls.items()]
    right, wrong = download(web, *rows)
    assert (right.status, wrong.status, wrong.reason) == ("ok", "failed", "another file")


def test_what_a_site_does_not_want_is_dropped_and_noted(web):
    tagged, closed = download(
        web,
        Row("a", {"url": web.url("tagged?name=X-Robots-Tag&value=noai")}),
        Row("b", {"url": web.url("0.jpg", "closed")}),
    )
    assert (tagged.status, tagged.values["opt_out"]) == ("dropped", "X-Robots-Tag: noai")
    assert (closed.status, closed.values["opt_out"]) == ("dropped", "robots.txt")


def test_a_row_without_address_is_refused(web):
    [row] = download(web, Row("a", {}))
    assert (row.status, row.reason) == ("failed", "address refused")


def recipe(folder, web, urls, *stages, size=8, **options):
    """A build of these addresses, with everything but download given by `stages`."""
    folder.mkdir(exist_ok=True)
    (folder / "urls.txt").write_text("\n".join(urls))
    download = {"kind": "download", **FAST, "allowed_hosts": list(web.hosts), **options}
    told = {
        "shard_size": size,
        "stop_when_failed": 1.0,
        "source": {"kind": "urls", "path": "urls.txt"},
        "stage": [download, *stages],
        "sink": {"kind": "webdataset"},
    }
    return make_recipe(told, folder / "recipe.toml")


def add_up(folder):
    """The counts of a finished build, which add up by stage, from stage to stage, and with its rows."""
    counts = json.loads((folder / "counts.json").read_text())
    for count in counts.values():
        assert count["in"] + count["made"] == count["out"] + sum((count["dropped"] | count["failed"]).values())
        assert min([count["in"], count["out"], *count["dropped"].values(), *count["failed"].values()]) >= 0
    for before, after in zip(list(counts.values()), list(counts.values())[1:], strict=False):
        assert before["out"] == after["in"]
    ended = {}
    for row in rows_in(folder / "shards"):
        if row.status != "ok":
            reasons = ended.setdefault(row.stage, {"dropped": {}, "failed": {}})[row.status]
            reasons[row.reason] = reasons.get(row.reason, 0) + 1
    for stage, count in counts.items():
        assert {"dropped": count["dropped"], "failed": count["failed"]} == ended.get(
            stage, {"dropped": {}, "failed": {}}
        )
    return {name: Counts.from_json(count) for name, count in counts.items()}


FAULTS = {
    "404": "http 404", "html": "no picture", "svg": "no picture", "truncated": "broken picture", "cut": "cut off",
    "polyglot": "broken picture", "understated": "connection", "endless": "too many bytes", "loop":
    "too many redirects", "huge": "too many bytes", "nonsense": "connection", "hung_up": "connection",
    "status?code=503": "http 503", "status?code=418": "http 418",
}  # fmt: skip


def test_a_build_from_a_bad_web_has_a_row_for_every_address_and_adds_up(web, tmp_path):
    good = [web.url(f"{number}.jpg", "plain" if number % 3 else "second") for number in range(60)]
    forbidden = [web.url("1.jpg", "closed"), web.url("tagged?name=X-Robots-Tag&value=noai")]
    private = ["http://10.0.0.1/a.jpg", web.redirect("http://[::1]/a.jpg"), "no address"]
    urls = [*good, *(web.url(path) for path in FAULTS), *forbidden, *private, "", good[0]]
    random.Random(0).shuffle(urls)
    build(recipe(tmp_path, web, urls, {"kind": "duplicates"}), tmp_path / "out")
    counts = add_up(tmp_path / "out")
    rows = list(rows_in(tmp_path / "out/shards"))
    assert len(rows) == len(urls)
    assert {row.get("url"): row.reason for row in rows if row.stage == "download"} == {
        **{web.url(path): reason for path, reason in FAULTS.items()},
        **dict.fromkeys(private, "address refused"),
        forbidden[0]: "robots.txt",
        forbidden[1]: "X-Robots-Tag: noai",
    }
    assert (counts["source"].failed, counts["source"].dropped) == ({"no url": 1}, {"duplicate url": 1})
    assert counts["duplicates"].left == 60


def test_a_slow_row_in_every_shard_does_not_make_the_build_as_slow(tmp_path):
    with Web() as web:
        urls = [
            web.url(f"slow?{number}", "second") if number % 3 == 0 else web.url(f"{number}.jpg") for number in range(36)
        ]
        made = recipe(tmp_path, web, urls, size=3, timeout=0.5, attempts=1, per_host=16)
        build(made, tmp_path / "out", engine=Threads(2))
        assert web.peak["second"] > 6  # of twelve shards, each waiting for its own
        assert add_up(tmp_path / "out")["download"].failed == {"timeout": 12}


def retried(folder):
    return [shard.get(RETRIED) for shard in (json.loads(it.read_text()) for it in sorted(folder.glob("shard-*.json")))]


def test_rows_that_failed_for_now_are_taken_up_again_when_all_others_are_done(tmp_path):
    """A host that is back by then: its rows go through the stages that follow, and into their shards."""
    with Web() as web:
        urls = [web.url(f"{number}.jpg", "late" if number % 3 == 0 else "plain") for number in range(30)]

        def mend(counts):
            web.is_mended = web.is_mended or "resize" in counts  # when a first shard is done

        made = recipe(tmp_path, web, urls, {"kind": "resize", "size": 32}, {"kind": "duplicates"})
        built = build(made, tmp_path / "out", engine=Threads(1), report=mend)
        assert built.rows == 30
        counts = add_up(tmp_path / "out")
        assert not counts["download"].failed
        assert counts["resize"].came == 30
        again = [row for row in rows_in(tmp_path / "out/shards") if row.values["attempts"] == 3]
        assert 2 <= len(again) <= 10  # the first shard's at least; others may have found the host mended
        whole = {row.id for shard in range(4) for row in Shard(tmp_path / "out/shards", shard).read()}
        assert whole == {identify(url) for url in urls}


def test_what_fails_for_good_is_not_asked_again_and_what_fails_for_now_is_once(tmp_path):
    with Web() as web:
        urls = [web.url(path, "plain") for path in ("404", "html", "0.jpg")] + [web.url("1.jpg", "down")]
        build(recipe(tmp_path, web, urls), tmp_path / "out")
        asked = [path for _, path in web.asked]
        assert {path: asked.count(path) for path in asked} == {"404": 1, "html": 1, "0.jpg": 1, "1.jpg": 4}
        add_up(tmp_path / "out")
        assert retried(tmp_path / "out/shards") == [1]


def test_a_finished_build_takes_up_its_failed_rows_when_asked(tmp_path):
    """Through a barrier, too: what comes late is a duplicate of what is there, not the other way round."""
    with Web() as web:
        paths = [f"{number}.jpg" for number in range(12)]
        urls = [web.url(path, "plain") for path in paths] + [web.url(path, "late") for path in (*paths[:2], "50.jpg")]
        made = recipe(tmp_path, web, [*urls[::-1], web.url("404")], {"kind": "duplicates"}, size=4)
        for _ in range(2):
            assert build(made, tmp_path / "out").rows == 12
        before = add_up(tmp_path / "out")
        assert before["download"].failed == {"http 503": 3, "http 404": 1}
        web.is_mended, asked = True, len(web.asked)
        assert build(made, tmp_path / "out", retry_failed=True).rows == 13
        assert len(web.asked) == asked + 3
        counts = add_up(tmp_path / "out")
        assert counts["download"].failed == {"http 404": 1}
        assert counts["duplicates"].dropped == {"duplicate by phash": 2}
        late = [row for row in rows_in(tmp_path / "out/shards") if row.status == "dropped"]
        assert {row.get("url") for row in late} == {web.url(path, "late") for path in paths[:2]}
        assert build(made, tmp_path / "out", retry_failed=True).rows == 13
        assert add_up(tmp_path / "out") == counts


class Stopped(Exception):
    pass


def test_a_retry_that_is_stopped_anywhere_goes_on_to_the_same_end(tmp_path, monkeypatch):
    """Stopped before each rename of a file: between the files of one shard as well as between shards."""
    true = Path.replace
    with Web() as web:
        urls = [web.url(f"{number}.jpg", "late" if number % 2 else "plain") for number in range(6)]
        made = recipe(tmp_path, web, urls, {"kind": "resize", "size": 48}, {"kind": "duplicates"}, size=3, attempts=1)
        build(made, tmp_path / "start")
        web.is_mended = True
        start = files(tmp_path / "start")

        def end(name, stop):
            for path, data in start.items():
                (tmp_path / name / path).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / name / path).write_bytes(data)
            left = [stop]

            def replace(self, target):
                left[0] -= 1
                if left[0] == 0:
                    raise Stopped
                return true(self, target)

            monkeypatch.setattr(Path, "replace", replace)
            try:
                build(made, tmp_path / name, engine=Threads(1), retry_failed=True)
                return False
            except Stopped:
                return True
            finally:
                monkeypatch.setattr(Path, "replace", true)

        assert not end("whole", 0)
        add_up(tmp_path / "whole")
        stops = 1
        while end(name := f"stop-{stops}", stops):
            build(made, tmp_path / name, retry_failed=not (tmp_path / name / "work").exists())
            assert files(tmp_path / name) == files(tmp_path / "whole"), stops
            stops += 1
        assert stops > 20


TOML = """
shard_size = 16
stop_when_failed = 1.0
[source]
kind = "urls"
path = "urls.txt"
[[stage]]
kind = "download"
timeout = 5.0
backoff = 0.01
attempts = 1
max_bytes = 200000
allowed_hosts = {hosts}
[[stage]]
kind = "duplicates"
[[stage]]
kind = "resize"
size = 48
format = "png"
[[stage]]
kind = "annotate"
condition = "canny"
options.detect_resolution = 64
"""
STEADY = ("404", "html", "svg", "truncated", "loop", "endless", "status?code=503", "hung_up")


@pytest.mark.slow
def test_killed_at_thirty_random_moments_a_download_ends_as_an_undisturbed_one(web, tmp_path):
    """With rows that are taken up again among them."""
    urls = [web.url(f"{number % 300}.jpg", "plain" if number < 300 else "second") for number in range(400)]
    urls += [web.url(path, site) for path in STEADY for site in ("plain", "second")]
    random.Random(1).shuffle(urls)
    (tmp_path / "urls.txt").write_text("\n".join(urls))
    (tmp_path / "recipe.toml").write_text(TOML.format(hosts=json.dumps(web.hosts)))
    command = [sys.executable, "-m", "controlnet", "build", str(tmp_path / "recipe.toml")]
    start = time.monotonic()
    assert subprocess.run([*command, str(tmp_path / "whole")], capture_output=True).returncode == 0
    whole_time = time.monotonic() - start
    begun = _seconds_until(tmp_path / "first", command)
    chance, kills, rounds = random.Random(2), 0, 0
    while kills < 30:
        rounds += 1
        out = tmp_path / f"out-{rounds}"
        while kills < 30:
            process = subprocess.Popen([*command, str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            try:
                process.wait(chance.uniform(begun, begun + (whole_time - begun) / 2))
                break
            except subprocess.TimeoutExpired:
                os.kill(process.pid, signal.SIGKILL)
                process.wait()
                kills += 1
        build(read_recipe(tmp_path / "recipe.toml"), out)
        assert files(out) == files(tmp_path / "whole")


def _seconds_until(out: Path, command: list[str]) -> float:
    """How long it takes until a build writes its first file."""
    start = time.monotonic()
    process = subprocess.Popen([*command, str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not out.exists():
        time.sleep(0.02)
    process.kill()
    process.wait()
    return time.monotonic() - start


def test_the_small_web_has_two_thousand_different_pictures():
    assert len({hashlib.sha256(jpeg(number)).digest() for number in range(small_web.COUNT)}) >= 2000
