"""Hints for many pictures: one PNG each, in the same layout, or whole pairs to train on; to be gone on with later."""

import csv
import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from operator import methodcaller
from pathlib import Path
from typing import Any, Literal

from controlnet.annotators.annotator import Annotator, Detail, NetworkAnnotator
from controlnet.annotators.hint_file import description, encode, encode_detail
from controlnet.annotators.resolution import to_size
from controlnet.atomic import write_atomically, write_quickly
from controlnet.data.pairs import MANIFEST
from controlnet.data.pictures import Picture
from controlnet.data.workers import cores, in_processes
from controlnet.errors import UserError
from controlnet.images import PictureError, Rgb, is_whole_png, three_channels

SETTINGS = "annotate.json"
FAILED = "failed.csv"
HINTS, TARGETS = "source", "target"  # of pairs, as fill50k names them
DETAILS = "details"  # what is found beyond hints: classes, keypoints
CHUNK = 16  # pictures that a worker does between two reports
WORTH_A_PROCESS = 500  # pictures; fewer are done in the time that a process takes to start
TOLD = 5  # of many files

Size = Literal["picture", "detected"]
State = Literal["made", "kept", "failed"]


@dataclass(frozen=True)
class Job:
    """What is to be made of every picture, and where."""

    annotator: Annotator
    out: Path
    is_pairs: bool = False
    """Pairs: the hints under `source`, the pictures under `target`, and prompt.json."""
    size: Size = "picture"
    """Of a hint: its picture's, or as it was detected; then the pictures of pairs get that size too."""
    prompt: str | None = None
    """For pictures of pairs that have none."""

    def settings(self) -> dict[str, Any]:
        """What two runs into one folder must agree on."""
        said = description(self.annotator)
        return {"annotator": said["annotator"], **said["options"], "pairs": self.is_pairs, "size": self.size}

    def hint_path(self, picture: Picture) -> Path:
        return self.out / (HINTS if self.is_pairs else "") / f"{picture.name}.png"

    def file_to_copy(self, picture: Picture) -> Path | None:
        """The file that becomes the target byte for byte; None where the target is encoded anew."""
        return picture.source if self.size == "picture" and isinstance(picture.source, Path) else None

    def pair(self, picture: Picture) -> dict[str, str]:
        """The picture's line in prompt.json; empty if it has no prompt."""
        prompt = picture.prompt or self.prompt
        file = self.file_to_copy(picture)
        suffix = file.suffix if file else ".png"
        line = {"source": f"{HINTS}/{picture.name}.png", "target": f"{TARGETS}/{picture.name}{suffix}"}
        return line | {"prompt": prompt} if prompt else {}


@dataclass(frozen=True)
class Outcome:
    """What became of a picture."""

    state: State
    reason: str = ""
    """Why it failed."""


@dataclass
class Summary:
    """What became of all of them."""

    made: int = 0
    kept: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)
    """Picture and reason."""

    def add(self, picture: Picture, outcome: Outcome) -> None:
        self.made += outcome.state == "made"
        self.kept += outcome.state == "kept"
        if outcome.state == "failed":
            self.failed.append((picture.label, outcome.reason))

    def __str__(self) -> str:
        return f"{self.made:,} hints made, {self.kept:,} kept, {len(self.failed):,} failed"


def annotate_all(
    job: Job,
    pictures: Iterable[Picture],
    total: int | None = None,
    workers: int | None = None,
    batch_size: int = CHUNK,
    report: Callable[[Picture, Outcome], None] = lambda picture, outcome: None,
) -> Summary:
    """Make the hint of every picture that has none yet; write failed.csv if some cannot be had, prompt.json of pairs.

    Annotators without a network run in `workers` processes, by default as many as there are cores; networks run here,
    on `batch_size` pictures at once. The processes are spawned, so a script that calls this for hundreds of pictures
    does it under `if __name__ == "__main__"`. UserError for a folder of other content or settings, and a full disk.
    """
    _begin(job)
    is_network = isinstance(job.annotator, NetworkAnnotator)
    enough = cores() if total is None else min(cores(), 1 + total // WORTH_A_PROCESS)
    chunks = _chunks(pictures, batch_size if is_network else CHUNK)
    summary, lines = Summary(), []
    ended = in_processes(partial(annotate_chunk, job), chunks, 1 if is_network else workers or enough)
    for picture, outcome in chain.from_iterable(zip(*each, strict=True) for each in ended):
        summary.add(picture, outcome)
        report(picture, outcome)
        if outcome.state != "failed":
            lines.append(json.dumps(job.pair(picture), ensure_ascii=False) + "\n")
    _write_failed(job.out / FAILED, summary.failed)
    if job.is_pairs:
        manifest = "".join(lines)
        write_atomically(job.out / MANIFEST, lambda temporary: temporary.write_text(manifest, encoding="utf-8"))
    return summary


def annotate_chunk(job: Job, pictures: list[Picture]) -> list[Outcome]:
    """The outcomes of some pictures, in their order; those that need a hint are annotated together."""
    looks = [_look(job, picture) for picture in pictures]
    hints = iter(job.annotator.batch_detailed([look for look in looks if not isinstance(look, Outcome)]))
    text = json.dumps(description(job.annotator))
    return [
        look if isinstance(look, Outcome) else _write(job, picture, look, *next(hints), text)
        for picture, look in zip(pictures, looks, strict=True)
    ]


def _look(job: Job, picture: Picture) -> Outcome | Rgb:
    """The picture's pixels, or what has become of it without them."""
    if job.is_pairs and not job.pair(picture):
        where = "in a text file beside it, in a table (--prompts) or for all (--prompt)"
        return Outcome("failed", f"{picture.label}: no prompt; expected one {where}")
    if is_whole_png(job.hint_path(picture)):
        return Outcome("kept")
    try:
        return job.annotator.read(picture.source)
    except PictureError as error:
        return Outcome("failed", str(error))


def _write(job: Job, picture: Picture, rgb: Rgb, hint: Rgb, detail: Detail, text: str) -> Outcome:
    """Put the hint on disk, its detail and the target before it: what has a hint is whole."""
    if job.size == "picture":
        hint = to_size(hint, rgb.shape[1::-1], job.annotator.meaning.is_smooth)
    if job.is_pairs:
        write_quickly(job.out / job.pair(picture)["target"], partial(_write_target, job, picture, rgb))
    if detail is not None:
        suffix, content = encode_detail(detail, hint.shape[1::-1])
        write_quickly(job.out / DETAILS / f"{picture.name}{suffix}", methodcaller("write_bytes", content))
    write_quickly(job.hint_path(picture), methodcaller("write_bytes", encode(hint, text)))
    return Outcome("made")


def _write_target(job: Job, picture: Picture, rgb: Rgb, path: Path) -> None:
    if file := job.file_to_copy(picture):
        shutil.copyfile(file, path)
    else:
        target = job.annotator.at_resolution(rgb) if job.size == "detected" else rgb
        path.write_bytes(encode(three_channels(target)))


def _begin(job: Job) -> None:
    """Make the folder, or find it begun with the same settings; sweep what a killed run left half written."""
    path, settings = job.out / SETTINGS, job.settings()
    if path.exists():
        _refuse_other_settings(path, settings)
        for leftover in job.out.rglob(".*.tmp*"):
            leftover.unlink()
    elif job.out.exists() and (found := sorted(each.name for each in job.out.iterdir())):
        names = ", ".join(found[:TOLD]) + ", ..." * (len(found) > TOLD)
        raise UserError(f"{job.out} holds {names}, which this command did not write; choose an empty or a new folder")
    content = json.dumps(settings, indent=2) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(content, encoding="utf-8"))


def _refuse_other_settings(path: Path, settings: dict[str, Any]) -> None:
    try:
        begun = dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is broken ({error}); remove {path.parent} or choose another folder") from error
    differences = [
        f"{name} {begun.get(name)}, now {settings.get(name)} is asked for"
        for name in {**begun, **settings}
        if begun.get(name) != settings.get(name)
    ]
    if differences:
        raise UserError(
            f"{path.parent} was begun with {'; with '.join(differences)}; "
            "ask for what it was begun with, or choose another folder"
        )


def _write_failed(path: Path, failed: list[tuple[str, str]]) -> None:
    """One row for each, or no file at all."""
    if not failed:
        path.unlink(missing_ok=True)
        return

    def write(temporary: Path) -> None:
        with temporary.open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerow(("picture", "reason"))
            rows.writerows(failed)

    write_atomically(path, write)


def _chunks(pictures: Iterable[Picture], length: int) -> Iterator[list[Picture]]:
    rest = iter(pictures)
    while chunk := list(islice(rest, length)):
        yield chunk
