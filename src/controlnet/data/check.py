"""Every defect of a data set at once, before a training trips over the first of them."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path
from statistics import median

from controlnet.annotators.hint_file import read_description
from controlnet.annotators.inpaint import CONDITION as INPAINT
from controlnet.data.formats.recognise import open_records
from controlnet.data.formats.records import USUAL, Columns, Record, Records, Stored
from controlnet.data.pairs import size_problem
from controlnet.images import PictureError, Rgb, decode, decode_with_alpha

FAR = 2  # times a side of the median picture: farther, a picture is cropped or blown up where others are not


@dataclass(frozen=True)
class Finding:
    """What is wrong, or may be meant, at a place of the data set: a line, a row, a name."""

    place: int  # counted from 1; sorts the findings
    label: str
    message: str

    def __str__(self) -> str:
        return f"{self.label}: {self.message}"


@dataclass(frozen=True)
class Report:
    """All findings by place: `errors` are defects, `warnings` may be meant."""

    pairs: int
    errors: tuple[Finding, ...]
    warnings: tuple[Finding, ...]


@dataclass(frozen=True)
class _Seen:
    """What the pictures of a pair showed: their problems, the size and the content where they could be read."""

    place: int
    label: str
    target: str
    hint: str
    problems: tuple[str, ...]
    size: tuple[int, int] | None = None  # width, height
    content: bytes = b""
    hint_is_empty: bool = False

    def finds(self, message: str) -> Finding:
        return Finding(self.place, self.label, message)


def check(place: Path | str, columns: Columns = USUAL) -> Report:
    """Look at every row and every picture of a data set, in whatever format.

    Defects: a row that is no pair, a name without its partner, a missing or unreadable picture, sizes that differ, an
    empty prompt, a pair that was there before (same files, or same pixels), a hint for inpainting among others.
    Warnings: a hint of one value, a picture far from the median size, pictures without hints. UserError for a place
    that is no data set.
    """
    records = open_records(place, columns)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            look = partial(_look, records, len(records) > 0 and _says_inpaint(records.record(0).hint))
            seen = list(_with_progress(pool.map(look, range(len(records))), len(records)))
        finally:
            pool.shutdown(cancel_futures=True)  # Ctrl-C does not wait for the rest
    errors = [Finding(problem.place, problem.label, problem.message) for problem in records.problems]
    errors += [one.finds(problem) for one in seen for problem in one.problems]
    errors += _duplicates(seen)
    warnings = [one.finds(f"the hint {one.hint} is empty") for one in seen if one.hint_is_empty]
    warnings += _far_sizes(seen)
    if seen and not seen[0].hint:
        warnings.append(Finding(0, str(place), "has no hints; train with --annotate, or make them"))
    return Report(len(records) + len(records.problems), _by_place(errors), _by_place(warnings))


def _look(records: Records, are_inpaint: bool, index: int) -> _Seen:
    record, (place, label) = records.record(index), records.where(index)
    problems = [] if record.prompt.strip() else ["the prompt is empty"]
    read = [_decoded(record.target, decode, problems)]
    if record.hint:
        read.append(_decoded(record.hint, decode_with_alpha if are_inpaint else decode, problems))
    known = place, label, record.target.name, record.hint.name if record.hint else ""
    pictures = [pixels for pixels in read if pixels is not None]
    if len(pictures) < len(read):
        return _Seen(*known, tuple(problems))
    target, hint = pictures[0], pictures[-1]
    problems += _problems_of_hint(record, target, hint, are_inpaint)
    height, width = target.shape[:2]
    is_empty = record.hint is not None and bool((hint == hint[0, 0]).all())
    return _Seen(*known, tuple(problems), (width, height), _content(target, hint), is_empty)


def _decoded(stored: Stored, how: Callable[[Path | bytes], Rgb], problems: list[str]) -> Rgb | None:
    """The picture; or None, and why in `problems`."""
    source = stored.source
    try:
        return how(source)
    except PictureError as error:
        is_missing = isinstance(source, Path) and not source.is_file()
        told = str(error).replace(str(source) if isinstance(source, Path) else "picture in memory", stored.name)
        problems.append(f"{stored.name} is missing" if is_missing else told)
        return None


def _problems_of_hint(record: Record, target: Rgb, hint: Rgb, are_inpaint: bool) -> Iterator[str]:
    if problem := size_problem(target, hint, record):
        yield problem
    if record.hint and _says_inpaint(record.hint) != are_inpaint:
        kinds = ("is for inpainting, the first hint is not", "is not for inpainting, as the first hint is")
        yield f"the hint {record.hint.name} {kinds[are_inpaint]}"


def _says_inpaint(hint: Stored | None) -> bool:
    """Of what `controlnet annotate` wrote into a hint; nothing else says it, and what is broken says nothing."""
    try:
        return hint is not None and (read_description(hint.opened()) or {}).get("condition") == INPAINT
    except (OSError, ValueError):
        return False


def _content(target: Rgb, hint: Rgb) -> bytes:
    """The same for the same pixels, however they are encoded."""
    digest = blake2b(repr((target.shape, hint.shape)).encode(), digest_size=16)
    digest.update(target.tobytes())
    digest.update(hint.tobytes())
    return digest.digest()


def _duplicates(seen: list[_Seen]) -> Iterator[Finding]:
    """Pairs that were there before; the key of a pair that cannot be read is its files alone."""
    first: dict[object, str] = {}
    for one in seen:
        keys = [(one.hint, one.target), *([one.content] if one.content else [])]
        before = [first[key] for key in keys if key in first]
        if before:
            yield one.finds(f"the same pair as in {before[0]}")
        for key in keys:
            first.setdefault(key, one.label)


def _far_sizes(seen: list[_Seen]) -> Iterator[Finding]:
    sizes = [one.size for one in seen if one.size]
    if not sizes:
        return
    usual = median(width for width, _ in sizes), median(height for _, height in sizes)
    for one in seen:
        if one.size and any(_is_far(*sides) for sides in zip(one.size, usual, strict=True)):
            width, height = one.size
            yield one.finds(
                f"the picture {one.target} has {width}x{height} pixels, the median {usual[0]:g}x{usual[1]:g}"
            )


def _is_far(side: float, usual: float) -> bool:
    return max(side / usual, usual / side) > FAR


def _by_place(findings: list[Finding]) -> tuple[Finding, ...]:
    return tuple(sorted(findings, key=lambda finding: finding.place))


def _with_progress(seen: Iterator[_Seen], total: int) -> Iterator[_Seen]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("checking pairs"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        yield from progress.track(seen, total=total)
