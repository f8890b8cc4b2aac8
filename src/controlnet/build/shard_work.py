"""The work on one shard: read it, take its rows through the stages of a phase, write it. The unit of every engine."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any

from controlnet.build.counts import Counts
from controlnet.build.rows import Row
from controlnet.build.shards import Shard
from controlnet.build.stage import Barrier, Context, Stage, Work, guarded
from controlnet.errors import UserError

TOLD = 3  # reasons named when a build stops
ON_DEVICE = Lock()  # held by the one stage of this process that computes on its device
ENOUGH = 20  # rows of a stage from which the share that failed means something
Refusals = Mapping[str, tuple[str, str]]  # id -> reason and detail
Part = Sequence[tuple[str, Stage | Barrier]]  # of a recipe: stages with their names, a barrier at most at its beginning


@dataclass
class ShardWork:
    """The stages of one phase over the shards of one folder, each into its shard of another.

    Picklable before it is used: another process sets its stages up anew. Any shard may be done at any time, twice too.
    """

    stages: Sequence[tuple[str, Stage]]
    before: Path
    after: Path
    context: Context
    refusals: Refusals = field(default_factory=dict)
    """Rows that a barrier, named `barrier`, has decided to drop."""
    barrier: str = ""
    stop_when_failed: float = 1.0
    """Share of a stage's rows that may fail before it is no use to go on."""
    is_retry: bool = False
    """Rows that failed at one of these stages, and may succeed later, are taken up again where they failed."""
    then: Callable[[int], None] | None = None
    """What is done with a shard once it is whole; again, if it was whole before."""

    def __call__(self, number: int) -> dict[str, Counts]:
        """Do the shard of this number if it is not done; what became of its rows, stage by stage.

        UserError when nearly all rows fail at a stage; the shard is then left undone.
        """
        done = Shard(self.after, number)
        if not done.is_done:
            rows, counts = self._through(Shard(self.before, number).read())
            refuse_hopeless(counts, self.stop_when_failed)
            done.write(rows, {"stages": {name: count.to_json() for name, count in counts.items()}})
        else:
            counts = counts_of(done)
        if self.then is not None:
            self.then(number)
        return counts

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "works"}

    @cached_property
    def works(self) -> dict[str, Work]:
        return {name: guarded(stage.setup(self.context)) for name, stage in self.stages}

    def _through(self, rows: list[Row]) -> tuple[list[Row], dict[str, Counts]]:
        counts = {}
        if self.barrier:
            rows, counts[self.barrier] = self._refuse(rows)
        for name, stage in self.stages:
            rows, counts[name] = self._stage(name, stage, rows)
        return rows, counts

    def _refuse(self, rows: list[Row]) -> tuple[list[Row], Counts]:
        start, live = time.monotonic(), [row for row in rows if row.status == "ok"]
        judged = [self._judged(row) for row in live]
        counts = Counts.of(len(live), judged, time.monotonic() - start)
        return judged + [row for row in rows if row.status != "ok"], counts

    def _judged(self, row: Row) -> Row:
        if row.id not in self.refusals:
            return row
        return replace(row.dropped(*self.refusals[row.id]), stage=self.barrier, files={})

    def _stage(self, name: str, stage: Stage, rows: list[Row]) -> tuple[list[Row], Counts]:
        """Rows that have ended go to the end of the shard, without their files, and see no further stage."""
        if self.is_retry:
            rows = [_fresh(row) if may_succeed_later(row, {name: stage}) else row for row in rows]
        live = [row for row in rows if row.status == "ok"]
        seconds, results = 0.0, list[Row]()
        turn: AbstractContextManager[Any] = ON_DEVICE if stage.place == "device" else nullcontext()
        at_once = stage.rows_at_once
        for first in range(0, len(live), at_once):
            with turn:
                start = time.monotonic()
                results += self.works[name](live[first : first + at_once])
                seconds += time.monotonic() - start
        counts = Counts.of(len(live), results, seconds)
        assert counts.adds_up, (name, counts)
        ended = [replace(row, stage=name, files={}) for row in results if row.status != "ok"]
        return [row for row in results if row.status == "ok"] + ended + [r for r in rows if r.status != "ok"], counts


def may_succeed_later(row: Row, stages: Mapping[str, Stage]) -> bool:
    """Whether it failed at one of these stages for a reason that may be gone by now."""
    return row.status == "failed" and row.stage in stages and row.reason in stages[row.stage].retry_later


def _fresh(row: Row) -> Row:
    return replace(row, status="ok", stage="", reason="", detail="")


def counts_of(shard: Shard) -> dict[str, Counts]:
    """What its manifest says."""
    return {name: Counts.from_json(told) for name, told in shard.manifest["stages"].items()}


def refuse_hopeless(counts: Mapping[str, Counts], share: float) -> None:
    """UserError for a stage at which more than `share` of the rows fail: a dead host, a missing model."""
    for name, count in counts.items():
        if count.came >= ENOUGH and count.failed.total() > share * count.came:
            reasons = ", ".join(f"{reason} ({times})" for reason, times in count.failed.most_common(TOLD))
            raise UserError(
                f"{count.failed.total()} of {count.came} rows of a shard failed at the stage {name}: {reasons}; "
                f"stop_when_failed = {share:g} allows less. What is done is kept: mend the cause and run the same "
                "command again, or raise stop_when_failed"
            )
