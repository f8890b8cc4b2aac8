"""What works on shards: threads of this process, or (in `ray_engine`) a cluster."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

from controlnet.build.counts import Counts
from controlnet.build.shard_work import ShardWork

Done = tuple[int, dict[str, Counts]]
Submit = Callable[[int], "Future[dict[str, Counts]]"]


class Engine(Protocol):
    """Does shards in any order and any number of times; gives each one's counts as it is done."""

    def run(self, work: ShardWork, numbers: Iterable[int]) -> Iterator[Done]: ...


class Threads:
    """Shards side by side in this process: while one waits for the network another computes.

    What it holds in memory is bounded by as many shards as there are workers.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers

    def run(self, work: ShardWork, numbers: Iterable[int]) -> Iterator[Done]:
        work.works  # noqa: B018  # set up once, before threads do it at the same time
        with ThreadPoolExecutor(self.workers) as pool:
            yield from _in_order(lambda number: pool.submit(work, number), numbers, self.workers)


def _in_order(submit: Submit, numbers: Iterable[int], room: int) -> Iterator[Done]:
    under_way: deque[tuple[int, Future[dict[str, Counts]]]] = deque()
    try:
        for number in numbers:
            if len(under_way) == room:
                first, future = under_way.popleft()
                yield first, future.result()
            under_way.append((number, submit(number)))
        for number, future in under_way:
            yield number, future.result()
    finally:
        for _, future in under_way:
            future.cancel()
