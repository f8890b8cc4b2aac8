"""Work spread over processes comes back in order, and takes no more tasks than it needs."""

import time

import pytest

from controlnet.data.workers import AHEAD, cores, in_processes


def late(number: int) -> int:
    time.sleep(0.02 * (number % 3))
    return number**2


def refuse_three(number: int) -> int:
    if number == 3:
        raise ValueError("three")
    return number


@pytest.mark.parametrize("processes", [1, 2])
def test_results_come_in_the_order_of_their_tasks(processes):
    assert list(in_processes(late, range(8), processes)) == [(number, number**2) for number in range(8)]


@pytest.mark.parametrize("processes", [1, 2])
def test_an_error_reaches_the_caller_after_the_results_before_it(processes):
    results = in_processes(refuse_three, range(9), processes)
    assert [next(results)[0] for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        next(results)


def test_only_a_few_tasks_are_taken_ahead_of_the_results():
    taken: list[int] = []

    def endless():
        while True:
            taken.append(len(taken))
            yield taken[-1]

    results = in_processes(late, endless(), processes=2)
    assert [next(results)[0] for _ in range(3)] == [0, 1, 2]
    results.close()
    assert len(taken) <= 3 + 2 * AHEAD


def test_there_is_a_core():
    assert cores() >= 1
