"""Every defect of a data set at once, before a training trips over the first of them."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path
from statistics import median

from controlnet.data.pairs import Row, find_manifest, read_lines, size_problem
from controlnet.images import PictureError, Rgb, decode

FAR = 2  # times a side of the median picture: farther, a picture is cropped or blown up where others are not


@dataclass(frozen=True)
class Finding:
    """What is wrong, or may be meant, in a line of the manifest, counted from 1."""

    line: int
    message: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.message}"


@dataclass(frozen=True)
class Report:
    """All findings by line: `errors` are defects, `warnings` may be meant."""

    pairs: int
    errors: tuple[Finding, ...]
    warnings: tuple[Finding, ...]


@dataclass(frozen=True)
class _Seen:
    """What the pictures of a line showed: their problems, the size and the content where they could be read."""

    row: Row
    problems: tuple[str, ...]
    size: tuple[int, int] | None = None  # width, height
    content: bytes = b""
    hint_is_empty: bool = False


def check(folder: Path | str) -> Report:
    """Look at every line and every picture of a data set.

    Defects: a line that is no pair, a missing or unreadable picture, sizes that differ, an empty prompt, a pair that
    was there before (same files, or same pixels). Warnings: a hint of one value, a picture far from the median size.
    UserError for a folder that is no data set.
    """
    manifest = find_manifest(Path(folder))
    lines = read_lines(manifest)
    rows = [row for _, row in lines if isinstance(row, Row)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            seen = list(_with_progress(pool.map(partial(_look, manifest.parent), rows), len(rows)))
        finally:
            pool.shutdown(cancel_futures=True)  # Ctrl-C does not wait for the rest
    errors = [Finding(line, row) for line, row in lines if isinstance(row, str)]
    errors += [Finding(one.row.line, problem) for one in seen for problem in one.problems]
    errors += _duplicates(seen)
    warnings = [Finding(one.row.line, f"the hint {one.row.source} is empty") for one in seen if one.hint_is_empty]
    warnings += _far_sizes(seen)
    return Report(len(lines), _by_line(errors), _by_line(warnings))


def _look(folder: Path, row: Row) -> _Seen:
    problems = [] if row.prompt.strip() else ["the prompt is empty"]
    pictures: list[Rgb] = []
    for name in (row.target, row.source):
        try:
            pictures.append(decode(folder / name))
        except PictureError as error:
            there = (folder / name).is_file()
            problems.append(str(error).replace(f"{folder / name}", name) if there else f"{name} is missing")
    if len(pictures) < 2:
        return _Seen(row, tuple(problems))
    target, hint = pictures
    if problem := size_problem(target, hint, row):
        problems.append(problem)
    height, width = target.shape[:2]
    return _Seen(row, tuple(problems), (width, height), _content(target, hint), bool((hint == hint[0, 0]).all()))


def _content(target: Rgb, hint: Rgb) -> bytes:
    """The same for the same pixels, however they are encoded."""
    digest = blake2b(repr((target.shape, hint.shape)).encode(), digest_size=16)
    digest.update(target.tobytes())
    digest.update(hint.tobytes())
    return digest.digest()


def _duplicates(seen: list[_Seen]) -> Iterator[Finding]:
    """Lines whose pair was there before; the key of a pair that cannot be read is its files alone."""
    first_line: dict[object, int] = {}
    for one in seen:
        keys = [(one.row.source, one.row.target), *([one.content] if one.content else [])]
        before = [first_line[key] for key in keys if key in first_line]
        if before:
            yield Finding(one.row.line, f"the same pair as in line {before[0]}")
        for key in keys:
            first_line.setdefault(key, one.row.line)


def _far_sizes(seen: list[_Seen]) -> Iterator[Finding]:
    sizes = [one.size for one in seen if one.size]
    if not sizes:
        return
    usual = median(width for width, _ in sizes), median(height for _, height in sizes)
    for one in seen:
        if one.size and any(_is_far(*sides) for sides in zip(one.size, usual, strict=True)):
            width, height = one.size
            message = f"the picture {one.row.target} has {width}x{height} pixels, the median {usual[0]:g}x{usual[1]:g}"
            yield Finding(one.row.line, message)


def _is_far(side: float, usual: float) -> bool:
    return max(side / usual, usual / side) > FAR


def _by_line(findings: list[Finding]) -> tuple[Finding, ...]:
    return tuple(sorted(findings, key=lambda finding: finding.line))


def _with_progress(seen: Iterator[_Seen], total: int) -> Iterator[_Seen]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("checking pairs"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        yield from progress.track(seen, total=total)
