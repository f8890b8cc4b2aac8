"""Pairs in tar files, as WebDataset has them: the members `key.jpg`, `key.hint.png` and `key.txt` are a pair.

The tars are indexed once by their headers; a picture is then read from its place, in any order.
"""

import json
import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from controlnet.data.formats.records import PROMPTS, TARGETS, USUAL, Columns, Problem, Record, Records, Stored
from controlnet.errors import UserError

PICTURES = ("png", "jpg", "jpeg", "webp")
SHARDS = "shards"  # where a build has its tars
RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")  # of WebDataset: shard-{000..099}.tar


@dataclass(frozen=True)
class Member:
    """Where a member's bytes are."""

    tar: Path
    name: str
    offset: int
    size: int

    def read(self) -> bytes:
        """Safe in any thread: opened anew each time."""
        with self.tar.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


@dataclass(frozen=True)
class _Sample:
    target: Member
    hint: Member | None
    prompt: str


class Tars(Records):
    """The pairs of a tar, of a folder of tars (or its folder `shards`, as of a build), or of names with a range."""

    def __init__(self, place: str, columns: Columns = USUAL) -> None:
        self.place, self.columns = place, columns
        self.samples: list[tuple[str, _Sample]] = []
        problems: list[Problem] = []
        for tar in _tars(place):
            for key, members in _samples(tar):
                label = f"{tar.name}/{key}"
                sample = self._sample(members)
                if isinstance(sample, str):
                    problems.append(Problem(len(self.samples) + len(problems) + 1, label, sample))
                else:
                    self.samples.append((label, sample))
        if len({sample.hint is None for _, sample in self.samples}) > 1:
            without = [label for label, sample in self.samples if sample.hint is None]
            problems += [Problem(len(self.samples), label, "lacks a hint, which others have") for label in without]
        self.problems = problems

    @staticmethod
    def recognises(place: str) -> bool:
        path = Path(place)
        return place.endswith(".tar") or (path.is_dir() and bool(_in_folder(path)))

    def __len__(self) -> int:
        return len(self.samples)

    def record(self, index: int) -> Record:
        label, sample = self.samples[index]
        hint = Stored(sample.hint.name, sample.hint.read()) if sample.hint else None
        return Record(label, Stored(sample.target.name, sample.target.read()), hint, sample.prompt)

    def prompt(self, index: int) -> str:
        return self.samples[index][1].prompt

    def where(self, index: int) -> tuple[int, str]:
        return index + 1, self.samples[index][0]

    def _sample(self, members: dict[str, Member]) -> _Sample | str:
        """What the members of a key, by what follows it, are together; or what they lack."""
        pictures = {_kind(end): member for end, member in members.items() if end.rpartition(".")[2] in PICTURES}
        target, hint, _ = self.columns.find(pictures)
        prompt = self._prompt(members)
        lacks = [name for name, found in (("picture", target), ("prompt", prompt is not None)) if not found]
        if lacks:
            return f"lacks a {' and a '.join(lacks)}; it has {', '.join(sorted(members))}"
        return _Sample(pictures[target], pictures[hint] if hint else None, prompt or "")

    def _prompt(self, members: dict[str, Member]) -> str | None:
        """Of a text member, else of a column of the JSON member."""
        texts = [name for name in (self.columns.caption, *PROMPTS) if name in members]
        if texts:
            return members[texts[0]].read().decode("utf-8", "replace").strip()
        if "json" not in members:
            return None
        try:
            told = json.loads(members["json"].read())
        except ValueError:
            return None
        _, _, name = self.columns.find(told if isinstance(told, dict) else ())
        return str(told[name]) if name else None


def _tars(place: str) -> list[Path]:
    """UserError where one is missing."""
    path = Path(place)
    if path.is_dir():
        return _in_folder(path)
    if found := RANGE.search(place):
        first, last = found.groups()
        numbers = range(int(first), int(last) + 1)
        paths = [Path(place[: found.start()] + str(n).zfill(len(first)) + place[found.end() :]) for n in numbers]
    else:
        paths = [path]
    if missing := [str(path) for path in paths if not path.is_file()]:
        raise UserError(f"{place}: not there: {', '.join(missing[:5])}; expected every tar of the data set")
    return paths


def _in_folder(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.tar")) or sorted((folder / SHARDS).glob("*.tar"))


def _samples(tar: Path) -> Iterator[tuple[str, dict[str, Member]]]:
    """Key and members of each sample, by what follows the key; members of one key stand together in a tar."""
    key, members = "", dict[str, Member]()
    for member in _members(tar):
        folder, _, name = member.name.rpartition("/")
        stem, _, end = name.partition(".")
        this = f"{folder}/{stem}" if folder else stem
        if this != key and members:
            yield key, members
            members = {}
        key = this
        members[end.lower()] = member
    if members:
        yield key, members


def _members(tar: Path) -> Iterator[Member]:
    try:
        with tarfile.open(tar, "r:") as file:  # "r:": not compressed, so that a member has a place
            for entry in file:
                if entry.isfile() and not os.path.basename(entry.name).startswith("."):
                    yield Member(tar, entry.name, entry.offset_data, entry.size)
                file.members.clear()  # type: ignore[attr-defined]  # else a tar of a million members keeps them all
    except tarfile.TarError as error:
        raise UserError(f"{tar}: cannot be read as a tar without compression ({error}); unpack it once") from error


def _kind(end: str) -> str:
    """What a picture is, by what follows its key: "hint.png" is a hint, "jpg" and "png" alone are targets."""
    return end.rpartition(".")[0] or TARGETS[0]
