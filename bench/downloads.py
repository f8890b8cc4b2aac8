"""Downloads a second into a data set, from a server on this machine that has faults as the web has.

    python bench/downloads.py [--quick]

The server runs in a process of its own and takes its share of the same cores. 256x256 JPEG; one address in fifty is
gone, no picture, or leads elsewhere. Everything that `controlnet build` does is counted: robots.txt, decoding, hashes,
tars and tables. The last line has the downloads a second; before it, the memory over 100,000 rows that are no pictures,
so that only what a build keeps of rows counts. `bench/build.py` measures the other stages.
"""

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np
import psutil
from aiohttp import web

from controlnet.build.recipe import make_recipe
from controlnet.build.run import build
from controlnet.images import encoded

SIDE, DIFFERENT = 256, 64
FAULTS = ("gone", "page", "moved/0.jpg")
ONE_IN = 50


def picture(number: int) -> bytes:
    """As large a file as a photograph of this size: some 20 kB."""
    random = np.random.default_rng(number)
    large = cv2.resize(random.integers(0, 256, (8, 8, 3), np.uint8), (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    grain = random.normal(0, 6, (SIDE, SIDE, 1))
    return encoded(np.clip(large + grain, 0, 255).astype(np.uint8), "jpg")


def serve() -> None:
    """Serve pictures until standard input ends; the port is the first line of the output."""
    pictures = [picture(number) for number in range(DIFFERENT)]

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        path = request.path
        if path.startswith("/moved/"):
            return web.Response(status=302, headers={"Location": path.removeprefix("/moved")})
        if path.endswith(".jpg"):
            return web.Response(body=pictures[int(path[1:-4]) % DIFFERENT], content_type="image/jpeg")
        return web.Response(status=200 if path.startswith("/page") else 404, text="<!doctype html><title>Gone</title>")

    async def run() -> None:
        runner = web.ServerRunner(web.Server(answer))
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, backlog=1024)
        await site.start()
        print(runner.addresses[0][1], flush=True)
        await asyncio.to_thread(sys.stdin.read)

    asyncio.run(run())


@contextmanager
def server() -> Iterator[str]:
    """host:port of a server in its own process."""
    command = [sys.executable, __file__, "--serve"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield f"127.0.0.1:{process.stdout.readline().strip()}"
        process.stdin.close()


def addresses(host: str, count: int) -> Iterator[str]:
    for number in range(count):
        path = f"{number}.jpg" if number % ONE_IN else f"{FAULTS[number // ONE_IN % len(FAULTS)]}?{number}"
        yield f"http://{host}/{path}"


def download(host: str, count: int, folder: Path, stages: list[dict[str, object]] | None = None) -> float:
    """Seconds for a build of so many addresses, in which nearly all come."""
    folder.mkdir(parents=True)
    (folder / "urls.txt").write_text("\n".join(addresses(host, count)))
    told = {
        "source": {"kind": "urls", "path": "urls.txt"},
        "stage": [{"kind": "download", "per_host": 64, "allowed_hosts": [host]}, *(stages or [])],
        "sink": {"kind": "webdataset"},
    }
    start = time.perf_counter()
    built = build(make_recipe(told, folder / "recipe.toml"), folder / "out")
    seconds = time.perf_counter() - start
    assert built.rows > 0.95 * count, built.counts
    assert all(counts.adds_up for counts in built.counts.values())
    return seconds


def core_seconds() -> float:
    """Of this process and of the server, if it runs, since they began: what a neighbour's work does not change much."""
    every = [psutil.Process(), *psutil.Process().children()]
    return sum(sum(process.cpu_times()[:2]) for process in every)


class Memory:
    """Of this process, each time that a shard has been through a stage; what comes before that has another size."""

    def __init__(self, stage: str) -> None:
        self.stage, self.seen = stage, list[int]()

    def __call__(self, counts: Mapping[str, object]) -> None:
        if self.stage in counts:
            self.seen.append(psutil.Process().memory_info().rss)

    @property
    def after_a_tenth(self) -> int:
        """Bytes, at most, over a tenth of the shards."""
        return max(self.seen[: len(self.seen) // 10])

    @property
    def at_most(self) -> int:
        return max(self.seen)


def memory(host: str, count: int, folder: Path) -> tuple[int, int]:
    """Bytes of this process at most, over the first tenth of so many rows that fail at once, and over all of them."""
    folder.mkdir()
    (folder / "urls.txt").write_text("\n".join(f"http://10.0.0.1/{number}.jpg" for number in range(count)))
    told = {
        "stop_when_failed": 1.0,
        "source": {"kind": "urls", "path": "urls.txt"},
        "stage": [{"kind": "download", "allowed_hosts": [host]}],
        "sink": {"kind": "webdataset"},
    }
    seen = Memory("download")
    build(make_recipe(told, folder / "recipe.toml"), folder / "out", report=seen)
    return seen.after_a_tenth, seen.at_most


def main() -> None:
    count, rows = (2_000, 20_000) if "--quick" in sys.argv else (10_000, 100_000)
    with TemporaryDirectory() as folder, server() as host:
        download(host, 200, Path(folder) / "warm")
        spent = -core_seconds()
        rate = count / download(host, count, Path(folder) / "downloads")
        spent += core_seconds()
        print(f"{1000 * spent / count:.2f} ms of a core each, the server's among it")
        tenth, whole = memory(host, rows, Path(folder) / "memory")
        print(f"memory after {rows // 10:,} rows {tenth / 1e6:.0f} MB, after {rows:,} rows {whole / 1e6:.0f} MB")
        print(f"rate {rate:.0f}")


if __name__ == "__main__":
    serve() if "--serve" in sys.argv else main()
