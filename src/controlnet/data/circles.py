"""The original's first lesson, drawn: rings to be filled, as in its fill50k.

    controlnet data circles OUT --count 50000 --size 512 --seed 0

`OUT/prompt.json` has one JSON object a line (source, target, prompt), `OUT/source/N.png` a white ring on black,
`OUT/target/N.png` the disc in two named colours. Pair N depends on the seed and N alone. To go on after an
interruption, or to have more pairs, run the command again.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from functools import partial
from itertools import chain
from operator import methodcaller
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from controlnet.atomic import write_atomically, write_quickly
from controlnet.data.order import CIRCLE, keyed
from controlnet.data.shapes import Scene, draw_scene, render
from controlnet.data.workers import cores, in_processes
from controlnet.errors import UserError
from controlnet.images import is_whole_png

VERSION = 1  # raise it when the same seed draws other pairs
SETTINGS = "circles.json"
THICKNESSES = (1, 2)  # pixels
SIZES = (16, 4096)  # a ring of radius 1.6 pixels; what the decoder still reads
CHUNK = 50  # pairs a worker draws between two reports: half a second at 512
WORTH_A_PROCESS = 1000  # pairs; fewer are drawn in the time that a process takes to start
# the cheapest for flat pictures: a third of the time of OpenCV's defaults, at the same 7 kB a picture of 512
PNG_OPTIONS = (
    cv2.IMWRITE_PNG_COMPRESSION, 1,
    cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP,
    cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE,
)  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """What decides the content of a folder of circles."""

    count: int
    size: int
    seed: int
    version: int = VERSION


def write_circles(out: Path, count: int = 50_000, size: int = 512, seed: int = 0, processes: int | None = None) -> None:
    """Draw pairs 0 ... count - 1 at `size` x `size` pixels into `out`, in as many processes as there are cores.

    The bytes are the same for any number of processes. What is there already is kept. The processes are spawned, so a
    script that calls this for thousands of pairs does it under `if __name__ == "__main__"`. UserError for values that
    make no sense, a folder of other content, and a full disk.
    """
    settings = Settings(count, size, seed)
    _refuse_nonsense(settings, processes)
    _begin(out, settings)
    prompts = list(chain.from_iterable(_with_progress(_draw_all(out, settings, processes), count)))
    lines = (
        json.dumps({"source": f"source/{number}.png", "target": f"target/{number}.png", "prompt": prompt}) + "\n"
        for number, prompt in enumerate(prompts)
    )
    write_atomically(out / "prompt.json", lambda temporary: temporary.write_text("".join(lines), encoding="utf-8"))


def draw_circle(seed: int, number: int) -> tuple[Scene, int]:
    """What pair `number` shows: the scene and the thickness of its ring in pixels."""
    random = np.random.default_rng(keyed(CIRCLE, seed, number))
    return draw_scene(random, shapes=("circle",)), int(random.choice(THICKNESSES))


def ring(scene: Scene, size: int, thickness: int) -> NDArray[np.uint8]:
    """The hint: a white line on the scene's radius, anti-aliased, on black; (size, size, 3) uint8 RGB.

    OpenCV's discs end about 0.6 pixel outside their radius, so a line of one pixel is the disc's own outermost pixel.
    """
    along = np.arange(size, dtype=np.float32)
    x, y, radius = (np.float32(value * size) for value in (scene.x, scene.y, scene.radius))
    distance = np.sqrt((along - x) ** 2 + ((along - y) ** 2)[:, None]) - radius
    coverage = np.clip(thickness / 2 + 0.5 - np.abs(distance), 0, 1)
    return np.asarray(cv2.merge([np.rint(255 * coverage).astype(np.uint8)] * 3))


def _refuse_nonsense(settings: Settings, processes: int | None) -> None:
    smallest, largest = SIZES
    problems = {
        f"count is {settings.count}, expected at least 1": settings.count < 1,
        f"size is {settings.size}, expected {smallest} to {largest} pixels": not smallest <= settings.size <= largest,
        f"seed is {settings.seed}, expected 0 to 2**63 - 1": not 0 <= settings.seed < 2**63,
        f"processes is {processes}, expected at least 1": processes is not None and processes < 1,
    }
    if any(problems.values()):
        raise UserError("; ".join(text for text, holds in problems.items() if holds))


def _begin(out: Path, settings: Settings) -> None:
    """Make the folder, or find it begun with the same settings; sweep what a killed run left half written."""
    path = out / SETTINGS
    if path.exists():
        _refuse_other_settings(out, settings)
    elif found := [name for name in ("prompt.json", "source", "target") if (out / name).exists()]:
        raise UserError(
            f"{out} holds {', '.join(found)}, which this command did not write; choose an empty or a new folder"
        )
    content = json.dumps(asdict(settings), indent=2) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(content, encoding="utf-8"))
    for folder in (out / "source", out / "target"):
        folder.mkdir(exist_ok=True)
        for leftover in folder.glob(".*.tmp*"):
            leftover.unlink()


def _refuse_other_settings(out: Path, settings: Settings) -> None:
    try:
        begun = Settings(**json.loads((out / SETTINGS).read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise UserError(f"{out / SETTINGS} is broken ({error}); remove {out} or choose another folder") from error
    differences = [
        f"{field.name} {getattr(begun, field.name)}, now {getattr(settings, field.name)} is asked for"
        for field in fields(Settings)
        if field.name != "count" and getattr(begun, field.name) != getattr(settings, field.name)
    ]
    if settings.count < begun.count:
        differences.append(f"count {begun.count}, which can grow but not shrink to {settings.count}")
    if differences:
        raise UserError(
            f"{out} was begun with {'; with '.join(differences)}; "
            "ask for what it was begun with, or choose another folder"
        )


def _draw_all(out: Path, settings: Settings, processes: int | None) -> Iterator[list[str]]:
    """The prompts, chunk by chunk and in order, each once its pairs are on disk."""
    chunks = [range(start, min(start + CHUNK, settings.count)) for start in range(0, settings.count, CHUNK)]
    draw = partial(_draw_chunk, out, settings.seed, settings.size)
    processes = processes or min(cores(), 1 + settings.count // WORTH_A_PROCESS)
    yield from (prompts for _, prompts in in_processes(draw, chunks, processes))


def _draw_chunk(out: Path, seed: int, size: int, numbers: range) -> list[str]:
    return [_draw_pair(out, seed, size, number) for number in numbers]


def _draw_pair(out: Path, seed: int, size: int, number: int) -> str:
    """Write the two pictures of a pair where they are missing; its prompt."""
    scene, thickness = draw_circle(seed, number)
    source, target = out / "source" / f"{number}.png", out / "target" / f"{number}.png"
    if not is_whole_png(source):
        _write_png(ring(scene, size, thickness), source)
    if not is_whole_png(target):
        _write_png(render(scene, size), target)
    return scene.caption


def _write_png(rgb: NDArray[np.uint8], path: Path) -> None:
    encoded = cv2.imencode(".png", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), PNG_OPTIONS)[1]
    write_quickly(path, methodcaller("write_bytes", encoded.tobytes()))


def _with_progress(chunks: Iterator[list[str]], total: int) -> Iterator[list[str]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("drawing circles"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=total)
        for chunk in chunks:
            yield chunk
            progress.advance(task, len(chunk))
