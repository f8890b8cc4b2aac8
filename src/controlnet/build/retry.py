"""Rows that failed for now, taken up again: out of their shards, through the stages, and back into their places.

SCRATCH/0-taken/   the rows that are tried again, in shards of the same numbers; their counts are negative, since
                   these rows are counted anew
SCRATCH/1, 2, ...  the rows after each part of the recipe
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree

from controlnet.build.counts import Counts, total
from controlnet.build.rows import Row
from controlnet.build.shard_work import Part, counts_of, may_succeed_later
from controlnet.build.shards import REWRITTEN, Shard, shards_in
from controlnet.build.stage import Stage

RETRIED = "retried"  # in a manifest: how often rows of the shard were taken up again
Stages = Mapping[str, Stage]


def retrying(parts: Sequence[Part]) -> Stages:
    """The stages whose rows may succeed later, by name."""
    named = {name: stage for part in parts for name, stage in part if isinstance(stage, Stage)}
    return {name: stage for name, stage in named.items() if stage.retry_later}


def settle(folder: Path) -> None:
    """Finish what a kill interrupted while shards were rewritten."""
    for successor in shards_in(folder / REWRITTEN):
        Shard(folder, successor.number).settle()
    rmtree(folder / REWRITTEN, ignore_errors=True)


def take(folder: Path, taken: Path, stages: Stages) -> None:
    """Copy the rows of the shards in `folder` that are tried again to shards in `taken`; the files stay."""
    for shard in shards_in(folder):
        if not _has_pending(counts_of(shard), stages):
            continue
        rows = [row for row in shard.read(with_files=False) if may_succeed_later(row, stages)]
        counts = {
            name: Counts(-reasons.total(), failed=Counter({reason: -times for reason, times in reasons.items()}))
            for name in stages
            if (reasons := Counter(row.reason for row in rows if row.stage == name))
        }
        Shard(taken, shard.number).write(rows, {"stages": {name: it.to_json() for name, it in counts.items()}})


def _has_pending(counts: Mapping[str, Counts], stages: Stages) -> bool:
    """Whether rows of a shard may be tried again; those of parts before the last are in no manifest of a last shard."""
    return any(name not in counts or counts[name].failed.keys() & stage.retry_later for name, stage in stages.items())


@dataclass(frozen=True)
class PutBack:
    """Rows that were taken from the shards of `into`, put back as they are in those of `done`."""

    taken: Path
    done: Path
    into: Path
    stages: Stages
    times: int
    """The shard's manifest says so afterwards; one that says so already is left alone."""

    def __call__(self, number: int) -> None:
        shard = Shard(self.into, number)
        shard.settle()
        if shard.manifest.get(RETRIED, 0) >= self.times:
            return
        again = Shard(self.done, number)
        before = counts_of(shard)
        after = total([before, counts_of(Shard(self.taken, number)), counts_of(again)])
        stages = {name: after[name].to_json() for name in before}
        kept = [row for row in shard.read() if not may_succeed_later(row, self.stages)]
        shard.rewrite(_wanted_first([*kept, *again.read()]), {"stages": stages, RETRIED: self.times})


def _wanted_first(rows: Sequence[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: row.status != "ok")
