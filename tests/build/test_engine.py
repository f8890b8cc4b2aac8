"""The engine of threads: what it holds is bounded, one shard's trouble is not another's, and kills lose nothing."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Barrier, Event
from weakref import ref

import pytest

from build import made
from build.test_run import TOML, files
from controlnet.build.engine import Threads
from controlnet.build.rows import Row
from controlnet.build.shard_work import ShardWork
from controlnet.build.shards import Shard, rows_in, shards_in
from controlnet.build.stage import Context, Stage, Work, each
from controlnet.cli.main import run
from controlnet.errors import UserError

ROWS = 20  # of a shard


@dataclass(frozen=True, kw_only=True)
class Does(Stage):
    """A stage that does what a test wants."""

    work: Work
    on: str = "threads"

    @property
    def place(self):
        return self.on

    def setup(self, context: Context) -> Work:
        return self.work


def number_of(row: Row) -> int:
    return int(row.values["source"])


@pytest.fixture
def shards(tmp_path):
    """Makes work of a stage over a dozen shards, each row of which says in which it is."""
    for number in range(12):
        rows = [Row(f"{number}-{place}", {"source": str(number)}) for place in range(ROWS)]
        Shard(tmp_path / "before", number).write(rows, {"stages": {}})
    return lambda work, on="threads": ShardWork(
        [("does", Does(work=work, on=on))], tmp_path / "before", tmp_path / "after", Context(), stop_when_failed=0.5
    )


@pytest.mark.parametrize("workers", [1, 3])
def test_rows_of_no_more_shards_than_workers_are_in_memory(shards, workers):
    seen, most, first_ones = list[ref[Row]](), 0, Barrier(workers)

    def notice(row: Row) -> Row:
        nonlocal most
        if row.id in {f"{number}-{place}" for number in range(workers) for place in (0, ROWS - 1)}:
            first_ones.wait(30)
        seen.append(ref(row))
        alive = [kept for it in list(seen) if (kept := it()) is not None]
        most = max(most, len({number_of(it) for it in alive}))
        return row

    assert len(list(Threads(workers).run(shards(each(notice)), range(12)))) == 12
    assert most == workers


def test_the_next_shard_is_asked_for_when_there_is_room(shards):
    asked = 0

    def numbers() -> Iterator[int]:
        nonlocal asked
        for asked in range(1, 13):
            yield asked - 1

    for done, _ in enumerate(Threads(2).run(shards(list), numbers())):
        assert asked <= done + 3  # those that are done, this one, and two under way


def test_a_slow_shard_holds_up_no_other_and_each_is_told_once(shards):
    others_are_done = Event()

    def wait_for_others(row: Row) -> Row:
        if number_of(row) == 0:
            assert others_are_done.wait(30)
        return row

    numbers = []
    for number, counts in Threads(2).run(shards(each(wait_for_others)), range(12)):
        assert counts["does"].left == ROWS
        numbers.append(number)
        if len(numbers) == 11:
            others_are_done.set()
    assert numbers[-1] == 0
    assert sorted(numbers) == list(range(12))


def test_one_stage_at_a_time_is_on_the_device(shards):
    under_way = most = 0

    def compute(row: Row) -> Row:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        time.sleep(0.0001)
        under_way -= 1
        return row

    list(Threads(4).run(shards(each(compute), "device"), range(12)))
    assert most == 1
    assert under_way == 0


def test_a_shard_that_ends_the_run_leaves_the_others_whole_and_can_be_mended(shards, tmp_path):
    def break_fifth(row: Row) -> Row:
        return row.failed("broken") if number_of(row) == 5 else row

    told = []
    with pytest.raises(UserError, match="20 of 20 rows of a shard failed at the stage does: broken"):
        told.extend(number for number, _ in Threads(3).run(shards(each(break_fifth)), range(12)))
    done = [shard.number for shard in shards_in(tmp_path / "after")]
    assert set(told) <= set(done)
    assert 5 not in done
    assert len(done) < 11  # it did not go on
    assert not list((tmp_path / "after").glob(".*"))
    assert len(list(rows_in(tmp_path / "after"))) == ROWS * len(done)
    assert sorted(number for number, _ in Threads(3).run(shards(list), range(12))) == list(range(12))
    assert [row.id for row in rows_in(tmp_path / "after")] == [row.id for row in rows_in(tmp_path / "before")]


@pytest.mark.slow
def test_killed_at_thirty_random_moments_of_its_work_a_build_ends_the_same(tmp_path):
    made.folder(tmp_path / "pictures", 60)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(TOML)
    assert run(["build", str(recipe), str(tmp_path / "whole")]) == 0  # warms caches of the disk
    length = _killed(recipe, tmp_path / "timed", 600)
    assert length is not None
    moments, caught, folder = random.Random(0), 0, 0
    for _ in range(30):
        out = tmp_path / str(folder)
        if _killed(recipe, out, moments.uniform(0, 0.6 * length)) is None:
            caught += 1
        else:
            assert files(out) == files(tmp_path / "whole")
            folder += 1
    assert run(["build", str(recipe), str(tmp_path / str(folder))]) == 0
    assert files(tmp_path / str(folder)) == files(tmp_path / "whole")
    assert caught > 15


def _killed(recipe: Path, out: Path, moment: float) -> float | None:
    """Build, killed so many seconds after the work began; None, or how long it took if it ended before."""
    begun = out / "build.json"
    before = begun.stat().st_mtime_ns if begun.exists() else 0
    process = subprocess.Popen(
        [sys.executable, "-m", "controlnet", "build", str(recipe), str(out)], stdout=-3, stderr=-3
    )
    while not (begun.exists() and begun.stat().st_mtime_ns != before):
        assert process.poll() is None
        time.sleep(0.005)
    start = time.monotonic()
    try:
        assert process.wait(moment) == 0
    except subprocess.TimeoutExpired:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        return None
    return time.monotonic() - start
