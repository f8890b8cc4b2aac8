import threading
import time

import pytest

from controlnet.data.prefetch import AHEAD, prefetched


def late(number: int) -> int:
    time.sleep(0.01 * (number % 3))
    return number**2


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_results_come_in_the_order_of_their_tasks(threads: int) -> None:
    assert list(prefetched(late, range(12), threads)) == [number**2 for number in range(12)]


def test_no_more_results_wait_than_there_is_room_for() -> None:
    begun: list[int] = []

    def work(number: int) -> int:
        begun.append(number)
        return number

    results = prefetched(work, iter(range(100)), 2)
    assert next(results) == 0
    time.sleep(0.1)
    assert len(begun) <= 1 + AHEAD * 2
    results.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("threads", [0, 2])
def test_an_error_comes_in_the_place_of_its_result(threads: int) -> None:
    results = prefetched(lambda number: 1 // number, [2, 1, 0, 3], threads)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_a_loop_that_ends_early_leaves_no_thread_behind() -> None:
    before = threading.active_count()
    for result in prefetched(late, range(1000), 4):
        if result == 4:
            break
    del result
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before
