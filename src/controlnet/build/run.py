"""A whole build: `build(recipe, out)`. The same call again goes on where it stopped, and ends with the same data set.

What lies in OUT:
build.json        the recipe, as it was read
work/0-source/    shards of the rows as the source gave them; then a folder for each part of the recipe that
                  ends at a barrier; what is taken up again is in retry-... and retried-... meanwhile
shards/           the last shards, every row in them, wanted or not
...               what the sink makes of them
"""

import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path

from controlnet.atomic import write_atomically
from controlnet.build.counts import Counts, total
from controlnet.build.engine import Engine, Threads
from controlnet.build.recipe import Recipe
from controlnet.build.retry import RETRIED, PutBack, retrying, settle, take
from controlnet.build.rows import Row
from controlnet.build.shard_work import Part, ShardWork, counts_of, refuse_hopeless
from controlnet.build.shards import Shard, rows_in, shards_in
from controlnet.build.stage import Barrier, Context, Source, Stage
from controlnet.data.workers import cores
from controlnet.errors import UserError

SOURCE = "source"
ALL = "all.json"  # in a folder of shards: how many there are, written when the last one is
# what is told while a build goes on: stage, and what became of a shard's rows there
Report = Callable[[dict[str, Counts]], None]


@dataclass(frozen=True)
class Built:
    """What a build came to."""

    shards: list[Shard]
    counts: dict[str, Counts]
    """By stage, of the whole build; the source's first."""
    wordless: int
    """Rows that are wanted and have no caption."""

    @property
    def rows(self) -> int:
        """Those that are wanted."""
        return list(self.counts.values())[-1].left


def build(
    recipe: Recipe,
    out: Path,
    context: Context | None = None,
    engine: Engine | None = None,
    report: Report = lambda counts: None,
    keep_work: bool = False,
    retry_failed: bool = False,
) -> Built:
    """Build, or go on building, the data set in `out`. Rows that failed for now are tried once more after each part.

    With `retry_failed`, a finished build takes up its failed rows another time.
    UserError for a folder of another recipe, and when nearly all rows fail at a stage.
    """
    context, engine = context or Context(), engine or Threads(cores() + 1)
    if problems := list(recipe.sink.problems(recipe.names)):
        raise UserError("\n".join(problems))
    _begin(recipe, out)
    phases = recipe.phases()
    folders = [out / "work" / "0-source", *(out / "work" / str(number) for number in range(1, len(phases)))]
    folders.append(out / "shards")
    run = _Run(context, engine, report)
    if not _is_complete(folders[-1]):
        _write_source(recipe, folders[0], report)
        for number, part in enumerate(phases):
            before, after = folders[number], folders[number + 1]
            if not _is_complete(after):
                run.part(replace(_work(part, before, after, context), stop_when_failed=recipe.stop_when_failed))
                run.retry([[it for it in part if isinstance(it[1], Stage)]], after, out / "work" / f"retry-{number}")
                _complete(after)
    else:
        _retry_finished(phases, folders[-1], out / "work", run, retry_failed)
    shards = shards_in(out / "shards")
    counts = _counts(folders)
    recipe.sink.write(shards, out)
    _write_json(out / "counts.json", {name: count.to_json() for name, count in counts.items()})
    if not keep_work:
        shutil.rmtree(out / "work", ignore_errors=True)
    return Built(shards, counts, sum(shard.manifest.get("wordless", 0) for shard in shards))


def _begin(recipe: Recipe, out: Path) -> None:
    """Note the recipe in OUT/build.json, or compare it with the one that is noted there."""
    path = out / "build.json"
    told = {name: value for name, value in (recipe.told or {}).items() if name != "stop_when_failed"}
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        if before != told:
            raise UserError(f"{out} was begun with another recipe:\n{_differences(before, told)}\ngive another folder")
    elif out.exists() and any(out.iterdir()):
        raise UserError(f"{out} has files but no build.json, so it is no build; give a new folder")
    for leftover in out.rglob(".*.tmp*"):
        leftover.unlink()
    _write_json(path, told)


def _differences(before: dict[str, object], now: dict[str, object]) -> str:
    then, told = (json.dumps(it, indent=1, sort_keys=True).splitlines() for it in (before, now))
    lines = [f"  - {line.strip()}" for line in then if line not in told]
    return "\n".join(lines + [f"  + {line.strip()}" for line in told if line not in then])


def _write_source(recipe: Recipe, folder: Path, report: Report) -> None:
    """Shards of what the source gives."""
    if _is_complete(folder):
        return
    number, since = 0, time.monotonic()
    for number, rows in enumerate(_chunks(recipe.source, recipe.shard_size), start=1):
        shard = Shard(folder, number - 1)
        if not shard.is_done:
            rows = [row if row.status == "ok" else replace(row, stage=SOURCE) for row in rows]
            counts = {SOURCE: Counts.of(len(rows), rows, time.monotonic() - since)}
            refuse_hopeless(counts, recipe.stop_when_failed)
            shard.write(rows, {"stages": {SOURCE: counts[SOURCE].to_json()}})
            report(counts)
        since = time.monotonic()
    if not number:
        raise UserError("the source of the recipe gives no rows; check its options")
    _complete(folder)


def _chunks(source: Source, size: int) -> Iterator[list[Row]]:
    rows = source.rows()
    while chunk := list(islice(rows, size)):
        yield chunk


def _work(part: Part, before: Path, after: Path, context: Context, others: Iterable[Row] = ()) -> ShardWork:
    """A part of a recipe; a barrier at its beginning decides now, over all rows so far, `others` the first."""
    work = ShardWork([(name, stage) for name, stage in part if isinstance(stage, Stage)], before, after, context)
    for name, barrier in part[:1]:
        if isinstance(barrier, Barrier):
            live = (row for row in rows_in(before) if row.status == "ok")
            work.barrier, work.refusals = name, barrier.decide(chain(others, live))
    return work


@dataclass(frozen=True)
class _Run:
    """How the parts of a build are worked on."""

    context: Context
    engine: Engine
    report: Report

    def part(self, work: ShardWork) -> None:
        """One part, over all shards."""
        if numbers := [shard.number for shard in shards_in(work.before)]:
            for _, counts in self.engine.run(work, numbers):
                self.report(counts)

    def retry(self, parts: Sequence[Part], folder: Path, scratch: Path, times: int = 1) -> Iterable[dict[str, Counts]]:
        """Take the rows of the shards in `folder` that failed for now through their stages again; what that adds."""
        stages = retrying(parts)
        if not stages:
            return ()
        settle(folder)
        steps = [scratch / "0-taken", *(scratch / str(number) for number in range(1, len(parts) + 1))]
        if not _is_complete(steps[0]):
            take(folder, steps[0], stages)
            _complete(steps[0])
        if not shards_in(steps[0]):
            return ()
        for number, part in enumerate(parts):
            others = _beyond(parts[number:], folder)
            work = _work(part, steps[number], steps[number + 1], self.context, others)
            work.is_retry = True
            if number + 1 == len(parts):
                work.then = PutBack(steps[0], steps[-1], folder, stages, times)
            self.part(work)
        settle(folder)
        return (counts_of(shard) for step in steps for shard in shards_in(step))


def _beyond(parts: Sequence[Part], folder: Path) -> Iterator[Row]:
    """The rows of finished shards that got past the barrier at the beginning of the first of these parts."""
    names = {name for part in parts for name, stage in part if not (part is parts[0] and isinstance(stage, Barrier))}
    return (row for row in rows_in(folder) if row.status == "ok" or row.stage in names)


def _retry_finished(parts: Sequence[Part], folder: Path, work: Path, run: _Run, is_asked: bool) -> None:
    """Take up the failed rows of a finished build once more, if that is asked, or was and is not done."""
    told = json.loads((folder / ALL).read_text(encoding="utf-8"))
    times = told.get(RETRIED, 1) + 1
    scratch = work / f"retried-{times}"
    if is_asked or scratch.exists():
        before = {name: Counts.from_json(count) for name, count in told["stages"].items()}
        after = total([before, *run.retry(parts, folder, scratch, times)])
        stages = {name: count.to_json() for name, count in after.items()}
        _write_json(folder / ALL, {**told, RETRIED: times, "stages": stages})


def _counts(folders: list[Path]) -> dict[str, Counts]:
    """Of all phases, from the manifests of their shards; kept with the shards when the work is swept."""
    kept = folders[-1] / ALL
    told = json.loads(kept.read_text(encoding="utf-8"))
    if "stages" not in told:
        of_shards = (counts_of(shard) for folder in folders for shard in shards_in(folder))
        told["stages"] = {name: count.to_json() for name, count in total(of_shards).items()}
        _write_json(kept, told)
    return {name: Counts.from_json(count) for name, count in told["stages"].items()}


def _complete(folder: Path) -> None:
    _write_json(folder / ALL, {"shards": len(shards_in(folder))})


def _is_complete(folder: Path) -> bool:
    return (folder / ALL).is_file()


def _write_json(path: Path, told: object) -> None:
    text = json.dumps(told, indent=1, ensure_ascii=False) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
