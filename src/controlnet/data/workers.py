"""Work spread over processes: spawned, in order, with as much under way as the processes need and no more."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from typing import TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")

AHEAD = 3  # tasks for each process: one under way, two waiting


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_processes(
    work: Callable[[Task], Result], tasks: Iterable[Task], processes: int
) -> Iterator[tuple[Task, Result]]:
    """Each task with its result, in order; tasks are taken one by one as there is room for them."""
    if processes <= 1:
        yield from ((task, work(task)) for task in tasks)
        return
    # spawned, not forked: the caller may have started threads, as torch does
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_begin) as pool:
        under_way: deque[tuple[Task, Future[Result]]] = deque()
        try:
            for task in tasks:
                under_way.append((task, pool.submit(work, task)))
                if len(under_way) >= AHEAD * processes:
                    yield _ended(under_way.popleft())
            while under_way:
                yield _ended(under_way.popleft())
        finally:
            pool.shutdown(cancel_futures=True)


def _ended(under_way: tuple[Task, Future[Result]]) -> tuple[Task, Result]:
    task, future = under_way
    return task, future.result()


def _begin() -> None:
    """Ctrl-C reaches the whole group: the parent stops, its workers finish their task; without a parent they leave."""
    import cv2

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def leave_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=leave_with_parent, daemon=True).start()
