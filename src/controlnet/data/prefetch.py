"""Work done ahead by threads, in order: pictures are read and decoded while a step is computed."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")

AHEAD = 2  # results for each thread that may wait to be taken: what bounds the memory


def prefetched(work: Callable[[Task], Result], tasks: Iterable[Task], threads: int) -> Iterator[Result]:
    """The result of each task, in order; at most `AHEAD` for each thread wait. No thread: done when asked for.

    Threads and not processes: decoders work without Python's lock, and nothing has to be sent from process to process.
    What `work` raises is raised where its result would have come.
    """
    if not threads:
        yield from map(work, tasks)
        return
    pool, waiting = ThreadPoolExecutor(threads, "reader"), deque[Future[Result]]()
    try:
        for task in tasks:
            waiting.append(pool.submit(work, task))
            if len(waiting) >= AHEAD * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
