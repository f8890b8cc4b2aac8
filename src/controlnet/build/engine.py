"""What works on shards: threads of this process, or (in `ray_engine`) a cluster."""

from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Protocol

from controlnet.build.counts import Counts
from controlnet.build.shard_work import ShardWork

WAITING = 16  # shards at once where stages ask the network: each has a row or two that take until the timeout
Done = tuple[int, dict[str, Counts]]


class Engine(Protocol):
    """Does shards in any order and any number of times; gives each one's counts as it is done."""

    def run(self, work: ShardWork, numbers: Iterable[int]) -> Iterator[Done]: ...


class Threads:
    """Shards side by side in this process: while one waits for the network another computes.

    As many are under way, and so in memory, as there are workers, or more if they mostly wait: the next is begun when
    one is done.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers

    def run(self, work: ShardWork, numbers: Iterable[int]) -> Iterator[Done]:
        """The shards as they are done. An exception ends the run when those under way are whole."""
        work.works  # noqa: B018  # set up once, before threads do it at the same time
        under_way: dict[Future[dict[str, Counts]], int] = {}
        waits = any(stage.place == "network" for _, stage in work.stages)
        room = max(self.workers, WAITING) if waits else self.workers
        with ThreadPoolExecutor(room) as pool:
            for number in numbers:
                if len(under_way) == room:
                    yield from _done(under_way)
                under_way[pool.submit(work, number)] = number
            while under_way:
                yield from _done(under_way)


def _done(under_way: dict[Future[dict[str, Counts]], int]) -> Iterator[Done]:
    """Those that are done, one at least."""
    done, _ = wait(under_way, return_when=FIRST_COMPLETED)
    for future in sorted(done, key=under_way.__getitem__):
        yield under_way.pop(future), future.result()
