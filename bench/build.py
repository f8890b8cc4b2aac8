"""How fast data sets are built: downloads, canny, what the executor itself costs, and a cluster beside one process.

    python bench/build.py [--quick] [--only executor|canny|ray|downloads|memory] [--json FILE]

Downloads are those of `bench/downloads.py`. Canny goes from JPEG at 512 pixels to shards with both files. The executor
is measured over simulated rows, a dozen columns and no picture, through three stages that do nothing; its memory is
that of the process. Ray is begun on this machine, with a worker for each core; its start and that of its workers are
told apart. The last line has the downloads a second, where they are measured.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from json import dumps
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import tyro
from annotate import SIDE, crops
from downloads import Memory, core_seconds, download, memory, server
from PIL import Image

from controlnet.build.annotate import Annotate
from controlnet.build.engine import Engine, Threads
from controlnet.build.filters import Resolution, Sharpness
from controlnet.build.pictures import inspected
from controlnet.build.ray_engine import OnRay
from controlnet.build.recipe import Recipe
from controlnet.build.rows import Row, identify
from controlnet.build.run import Report, build
from controlnet.build.sinks import WebDataset
from controlnet.build.sources import Files
from controlnet.build.stage import Context, Source, Stage, Work
from controlnet.data.workers import cores
from controlnet.images import encoded

Part = Literal["executor", "canny", "ray", "memory", "downloads"]
Figures = tuple[dict[str, float], str]  # of a part, and what to tell of them

SMALL = 64  # pixels a side of the pictures that cost little
KNOWN = {
    "caption": "simple bathroom, art deco interior design, marble floor, warm light",
    "license": "CC-BY-4.0",
    "sha256": "0" * 64,
    "phash": "0" * 16,
    "format": "jpg",
    "width": 512,
    "height": 512,
    "similarity": 0.3,
    "http_status": 200,
    "attempts": 1,
}


@dataclass(frozen=True, kw_only=True)
class Simulated(Source):
    """Rows as a list of URLs gives them."""

    count: int

    def rows(self) -> Iterator[Row]:
        for number in range(self.count):
            url = f"https://example.org/{number}.jpg"
            yield Row(identify(url), {"url": url, "source": f"urls.parquet:{number}", **KNOWN})


@dataclass(frozen=True, kw_only=True)
class Small(Simulated):
    """The same with pictures, few of which differ."""

    def rows(self) -> Iterator[Row]:
        pictures = [encoded(picture[:SMALL, :SMALL], "jpg") for picture in crops(16)]
        seen = [inspected(Row("any"), picture) for picture in pictures]
        for number, row in enumerate(super().rows()):
            known = seen[number % len(seen)]
            yield row.having(known.files, **known.values)


@dataclass(frozen=True, kw_only=True)
class Nothing(Stage):
    """What the executor does around a stage, alone."""

    def setup(self, context: Context) -> Work:
        return list


CHEAP = {
    "resolution": Resolution(min_side=SMALL),
    "sharpness": Sharpness(least=0.0),
    "annotate": Annotate(condition="canny", options={"detect_resolution": SMALL}),
}


def seconds(
    source: Source,
    stages: dict[str, Stage],
    out: Path,
    engine: Engine | None = None,
    report: Report = lambda counts: None,
) -> float:
    """How long a build takes in which no row is lost."""
    recipe = Recipe(source, tuple(stages.values()), WebDataset(), tuple(stages))
    start = time.perf_counter()
    built = build(recipe, out, engine=engine, report=report)
    spent = time.perf_counter() - start
    assert built.rows == built.counts["source"].came
    return spent


def executor(count: int, folder: Path) -> Figures:
    """Milliseconds a row, and megabytes of the process after a tenth of the work and at most."""
    stages: dict[str, Stage] = {f"nothing-{number}": Nothing() for number in range(3)}
    seen, before = Memory("nothing-0"), core_seconds()
    spent = seconds(Simulated(count=count), stages, folder / "executor", report=seen)
    figures = {"ms": 1000 * spent / count, "core ms": 1000 * (core_seconds() - before) / count}
    figures |= {"tenth MB": seen.after_a_tenth / 1e6, "whole MB": seen.at_most / 1e6}
    told = f"executor: {figures['ms']:.3f} ms a row, {figures['core ms']:.3f} of a core; {_memory(figures, count)}"
    return figures, told


def canny_rate(count: int, folder: Path) -> Figures:
    """Pictures a second from JPEG files to shards."""
    pictures = folder / "pictures"
    pictures.mkdir()
    for number, picture in enumerate(crops(count)):
        Image.fromarray(picture).save(pictures / f"{number:05d}.jpg", quality=90)
    spent = -core_seconds()
    rate = count / seconds(Files(path=pictures), {"annotate": Annotate(condition="canny")}, folder / "canny")
    cost = 1000 * (spent + core_seconds()) / count
    told = f"canny at {SIDE}, from JPEG files to shards: {rate:.0f} pictures/s, {cost:.1f} ms of a core each"
    return {"rate": rate, "core ms": cost}, told


def beside_ray(count: int, folder: Path) -> Figures:
    """Seconds in this process and on a cluster of as many workers as cores, and for that to begin."""
    threads = seconds(Small(count=count), CHEAP, folder / "threads", Threads(cores() + 1))
    start = time.perf_counter()
    cluster = OnRay(workers=cores())
    seconds(Small(count=1024), CHEAP, folder / "first", cluster)
    begun = time.perf_counter() - start
    on_ray = seconds(Small(count=count), CHEAP, folder / "ray", cluster)
    figures = {"threads": threads, "ray": on_ray, "ratio": on_ray / threads, "start": begun}
    return figures, (
        f"{count:,} rows of small pictures: {threads:.1f} s in this process, {on_ray:.1f} s on Ray, ratio "
        f"{figures['ratio']:.2f} (its start: {begun:.1f} s)"
    )


def of_failures(count: int, folder: Path) -> Figures:
    """Megabytes of the process while downloads fail at once."""
    with server() as host:
        tenth, whole = (size / 1e6 for size in memory(host, count, folder / "memory"))
    figures = {"tenth MB": tenth, "whole MB": whole}
    return figures, f"downloads that fail: {_memory(figures, count)}"


def download_rate(count: int, folder: Path) -> Figures:
    """Downloads a second into shards."""
    with server() as host:
        download(host, 200, folder / "warm")
        spent = -core_seconds()
        rate = count / download(host, count, folder / "downloads")
        cost = 1000 * (spent + core_seconds()) / count
    told = f"downloads of 256x256 JPEG from this machine: {rate:.0f}/s, {cost:.2f} ms of a core each with the server's"
    return {"rate": rate, "core ms": cost}, told


def _memory(figures: dict[str, float], count: int) -> str:
    return f"memory {figures['tenth MB']:.0f} MB after a tenth of {count:,} rows, {figures['whole MB']:.0f} MB at most"


def main(quick: bool = False, only: Part | None = None, json: Path | None = None) -> None:
    """Measure.

    Args:
        quick: Fewer rows, under three minutes.
        only: This part alone.
        json: Also write the figures to this file.
    """
    downloads, pictures, rows = (2_000, 600, 20_000) if quick else (10_000, 4_000, 100_000)
    figures: dict[str, dict[str, float]] = {}
    with TemporaryDirectory() as place:
        folder = Path(place)
        parts: dict[Part, Callable[[], Figures]] = {
            "executor": lambda: executor(rows, folder),
            "canny": lambda: canny_rate(pictures, folder),
            "ray": lambda: beside_ray(5_000, folder),
            "memory": lambda: of_failures(rows, folder),
            "downloads": lambda: download_rate(downloads, folder),
        }
        for name, measure in parts.items():
            if only in (None, name):
                figures[name], told = measure()
                print(told, flush=True)
    if json is not None:
        json.write_text(dumps(figures, indent=2) + "\n", encoding="utf-8")
    if "downloads" in figures:
        print(f"rate {figures['downloads']['rate']:.0f}")


if __name__ == "__main__":
    tyro.cli(main)
