"""A recipe: where rows come from, what is done with them, and what they become, as a TOML file says it.

    seed = 0

    [source]
    kind = "prompts"
    templates = ["simple {room}, {style} interior design"]
    words.room = ["bathroom", "kitchen"]
    words.style = ["art deco", "gothic"]

    [[stage]]
    kind = "resolution"
    min_side = 256

    [sink]
    kind = "folder"

Paths in a recipe are relative to its file.
"""

import json
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from controlnet.build import table
from controlnet.build.sinks import Folder, Sink
from controlnet.build.stage import Barrier, Source, Stage
from controlnet.errors import UserError
from controlnet.generation.values import read_fields

SHARD_SIZE = 256  # rows: some ten megabytes of pictures, and a few seconds of work to lose
TOP = ("source", "stage", "sink", "shard_size", "stop_when_failed")
# of a table that others see to: what stands in it, the recipe's folder, where its problems go -> what it becomes
ReadTable = Callable[[Any, Path, list[str]], Any]


@dataclass(frozen=True)
class Recipe:
    """A build, whole and checked."""

    source: Source
    stages: tuple[Stage | Barrier, ...]
    sink: Sink
    names: tuple[str, ...] = ()
    """Of the stages, each once: the second resize is `resize-2`."""
    shard_size: int = SHARD_SIZE
    stop_when_failed: float = 0.95
    """Share of a stage's rows that may fail before the build stops: a dead host, a missing model."""
    told: Mapping[str, Any] | None = None
    """What the file said, for the record."""
    others: Mapping[str, Any] = field(default_factory=dict)
    """Tables that a build does nothing with, as they were read."""

    def phases(self) -> list[list[tuple[str, Stage | Barrier]]]:
        """The stages, parted before every barrier."""
        parts: list[list[tuple[str, Stage | Barrier]]] = [[]]
        for name, stage in zip(self.names, self.stages, strict=True):
            if isinstance(stage, Barrier):
                parts.append([])
            parts[-1].append((name, stage))
        return parts


def read_recipe(path: Path, others: Mapping[str, ReadTable] | None = None) -> Recipe:
    """The recipe in a TOML file; `others` are tables in it that the caller reads and sees to.

    UserError tells everything that is wrong with it at once.
    """
    try:
        told = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"recipe {path}: cannot be read as TOML ({error})") from error
    return make_recipe(told, path, others)


def make_recipe(told: Mapping[str, Any], path: Path, others: Mapping[str, ReadTable] | None = None) -> Recipe:
    """The recipe that is told as TOML has it; `path` is that of its file."""
    others = others or {}
    known = (*TOP, *others)
    problems = [f"there is no {name!r}; expected one of: {', '.join(known)}" for name in told if name not in known]
    source = _part(table.SOURCES, told.get("source"), "source", path, problems)
    listed = told.get("stage", [])
    stages = [_part(table.STAGES, each, "stage", path, problems) for each in listed]
    sink = _part(table.SINKS, told.get("sink", {"kind": "folder"}), "sink", path, problems)
    rest = {name: told[name] for name in ("shard_size", "stop_when_failed") if name in told}
    problems += _number_problems(rest)
    read = {name: others[name](value, path.parent, problems) for name, value in told.items() if name in others}
    if problems:
        raise UserError(f"recipe {path}:\n" + "\n".join(f"  {it}" for it in problems))
    assert isinstance(source, Source)
    assert isinstance(sink, Folder | Sink)
    record = json.loads(json.dumps({name: value for name, value in told.items() if name in TOP}))
    return Recipe(source, tuple(stages), sink, tuple(_names(listed)), told=record, others=read, **rest)


def _part(kinds: Mapping[str, str], told: Any, what: str, path: Path, problems: list[str]) -> Any:
    """An instance of what the table of the recipe `told` calls; None with its problems noted."""
    if not isinstance(told, Mapping) or "kind" not in told:
        problems.append(f"[{what}] has no kind; expected one of: {', '.join(kinds)}")
        return None
    try:
        kind = table.load(kinds, told["kind"], what)
    except UserError as error:
        problems.append(str(error))
        return None
    wrong: list[str] = []
    given = read_fields(kind, {name: value for name, value in told.items() if name != "kind"}, wrong)
    needed = [each.name for each in fields(kind) if each.default is MISSING and each.default_factory is MISSING]
    wrong += [f"{name} is missing" for name in needed if name not in told]
    made = None
    if not wrong:
        try:
            made = kind(**{name: _beside(path, value) for name, value in given.items()})
        except UserError as error:
            wrong = str(error).splitlines()
    problems += [f"{what} {told['kind']}: {it}" for it in wrong]
    return made


def _beside(path: Path, value: Any) -> Any:
    return path.parent / value if isinstance(value, Path) else value


def _number_problems(rest: Mapping[str, Any]) -> Iterator[str]:
    size, share = rest.get("shard_size", 1), rest.get("stop_when_failed", 1.0)
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        yield f"shard_size is {size!r}; expected a whole number of at least 1"
    if not isinstance(share, int | float) or not 0 < share <= 1:
        yield f"stop_when_failed is {share!r}; expected a number above 0, at most 1"


def _names(listed: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    seen: dict[str, int] = {}
    for each in listed:
        kind = each["kind"]
        seen[kind] = seen.get(kind, 0) + 1
        yield kind if seen[kind] == 1 else f"{kind}-{seen[kind]}"
