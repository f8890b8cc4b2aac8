"""A whole build: `build(recipe, out)`. The same call again goes on where it stopped, and ends with the same data set.

OUT/build.json        the recipe, as it was read
OUT/work/0-source/    shards of the rows as the source gave them; then a folder for each part of the recipe that
                      ends at a barrier
OUT/shards/           the last shards, every row in them, wanted or not
OUT/...               what the sink makes of them
"""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from controlnet.atomic import write_atomically
from controlnet.build.counts import Counts, total
from controlnet.build.engine import Engine, Threads
from controlnet.build.recipe import Recipe
from controlnet.build.rows import Row
from controlnet.build.shard_work import ShardWork, counts_of, refuse_hopeless
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
) -> Built:
    """Build, or go on building, the data set in `out`.

    UserError for a folder of another recipe, and when nearly all rows fail at a stage.
    """
    context, engine = context or Context(), engine or Threads(cores() + 1)
    if problems := list(recipe.sink.problems(recipe.names)):
        raise UserError("\n".join(problems))
    _begin(recipe, out)
    phases = recipe.phases()
    folders = [out / "work" / "0-source", *(out / "work" / str(number) for number in range(1, len(phases)))]
    folders.append(out / "shards")
    if not _is_complete(folders[-1]):
        _write_source(recipe, folders[0], report)
        for number, stages in enumerate(phases):
            if not _is_complete(folders[number + 1]):
                work = _work(stages, folders[number], folders[number + 1], context)
                _run_phase(replace(work, stop_when_failed=recipe.stop_when_failed), engine, report)
    shards = shards_in(out / "shards")
    counts = _counts(folders)
    recipe.sink.write(shards, out)
    _write_json(out / "counts.json", {name: count.to_json() for name, count in counts.items()})
    if not keep_work:
        shutil.rmtree(out / "work", ignore_errors=True)
    return Built(shards, counts)


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
    number = 0
    for number, rows in enumerate(_chunks(recipe.source, recipe.shard_size), start=1):
        shard = Shard(folder, number - 1)
        if not shard.is_done:
            rows = [row if row.status == "ok" else replace(row, stage=SOURCE) for row in rows]
            counts = {SOURCE: Counts.of(len(rows), rows, 0)}
            refuse_hopeless(counts, recipe.stop_when_failed)
            shard.write(rows, {"stages": {SOURCE: counts[SOURCE].to_json()}})
            report(counts)
    if not number:
        raise UserError("the source of the recipe gives no rows; check its options")
    _write_json(folder / ALL, {"shards": number})


def _chunks(source: Source, size: int) -> Iterator[list[Row]]:
    rows = source.rows()
    while chunk := list(islice(rows, size)):
        yield chunk


def _work(stages: list[tuple[str, Stage | Barrier]], before: Path, after: Path, context: Context) -> ShardWork:
    """A phase; a barrier at its beginning decides now, over all rows of the phase before."""
    plain = [(name, stage) for name, stage in stages if isinstance(stage, Stage)]
    work = ShardWork(plain, before, after, context)
    for name, barrier in stages[:1]:
        if isinstance(barrier, Barrier):
            live = (row for row in rows_in(before) if row.status == "ok")
            work.barrier, work.refusals = name, barrier.decide(live)
    return work


def _run_phase(work: ShardWork, engine: Engine, report: Report) -> None:
    numbers = [shard.number for shard in shards_in(work.before)]
    for _, counts in engine.run(work, numbers):
        report(counts)
    _write_json(work.after / ALL, {"shards": len(numbers)})


def _counts(folders: list[Path]) -> dict[str, Counts]:
    """Of all phases, from the manifests of their shards; kept with the shards when the work is swept."""
    kept = folders[-1] / ALL
    told = json.loads(kept.read_text(encoding="utf-8"))
    if "stages" not in told:
        of_shards = (counts_of(shard) for folder in folders for shard in shards_in(folder))
        told["stages"] = {name: count.to_json() for name, count in total(of_shards).items()}
        _write_json(kept, told)
    return {name: Counts.from_json(count) for name, count in told["stages"].items()}


def _is_complete(folder: Path) -> bool:
    return (folder / ALL).is_file()


def _write_json(path: Path, told: object) -> None:
    text = json.dumps(told, indent=1, ensure_ascii=False) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
