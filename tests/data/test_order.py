import numpy as np
import pytest
import torch

from controlnet.data.order import Visits, keyed, order, sample_generator


def draw(*key: int) -> list[float]:
    return torch.rand(4, generator=sample_generator(*key)).tolist()


def test_an_order_visits_every_sample_once() -> None:
    assert sorted(order(0, 0, 1000).tolist()) == list(range(1000))


def test_an_order_depends_on_seed_and_epoch_alone() -> None:
    np.random.seed(1)
    first = order(3, 5, 100)
    np.random.seed(2)
    order(9, 9, 50)
    assert np.array_equal(order(3, 5, 100), first)
    assert not np.array_equal(order(3, 6, 100), first)
    assert not np.array_equal(order(4, 5, 100), first)


def test_what_is_drawn_for_a_sample_does_not_depend_on_who_was_drawn_before() -> None:
    torch.manual_seed(1)
    forwards = {sample: draw(0, 2, sample) for sample in range(20)}
    torch.manual_seed(2)
    backwards = {sample: draw(0, 2, sample) for sample in reversed(range(20))}
    assert forwards == backwards


def test_the_global_generators_are_left_alone() -> None:
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    draw(0, 0, 0)
    order(0, 0, 10)
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], numpy_before)


def test_neighbouring_keys_and_purposes_have_unrelated_streams() -> None:
    keys = [(seed, epoch, sample, purpose) for seed in range(4) for epoch in range(4) for sample in range(20)
            for purpose in (2, 7)]  # fmt: skip
    drawn = np.array([draw(*key) for key in keys])
    assert len(np.unique(drawn, axis=0)) == len(keys)
    assert abs(np.corrcoef(drawn.T) - np.eye(4)).max() < 0.2
    assert drawn.mean() == pytest.approx(0.5, abs=0.03)


def test_no_key_hides_in_another() -> None:
    """NumPy's own SeedSequence([1, 0]) is SeedSequence([1]), and [2**32] is [0, 1]."""
    keys = [(), (0,), (1,), (1, 0), (0, 1), (2**32,), (1, 0, 0), (0, 2**32), (2**32, 0), (2**63 - 1,)]
    assert len({int(keyed(*key).generate_state(1, np.uint64)[0]) for key in keys}) == len(keys)


def test_a_negative_key_is_refused() -> None:
    with pytest.raises(OverflowError):
        keyed(-1)


def test_the_streams_stay_as_they_are_from_release_to_release() -> None:
    assert order(0, 0, 8).tolist() == [5, 7, 4, 1, 3, 0, 2, 6]
    assert draw(0, 0, 0) == pytest.approx([0.470470, 0.533121, 0.598470, 0.345998], abs=1e-6)


@pytest.mark.parametrize("bucket_n", [[0] * 24, [0, 1, 1, 2, 1, 0, 1, 1] * 3, list(range(7))])
@pytest.mark.parametrize("size", [1, 4, 5])
def test_every_sample_is_visited_once_in_each_epoch_in_groups_of_one_bucket(bucket_n: list[int], size: int) -> None:
    visits = Visits(3, bucket_n, size)
    groups = [visits[number] for number in range(visits.groups_until(4 * size))]
    assert all(len({bucket_n[sample] for _, sample in group}) == 1 and len(group) == size for group in groups)
    every = [visit for group in groups for visit in group]
    for epoch in range(4 * size):
        seen = sorted(sample for visited, sample in every if visited == epoch)
        assert seen == list(range(len(bucket_n))), epoch


def test_with_one_bucket_groups_follow_one_another_as_the_order_says() -> None:
    visits = Visits(3, [7] * 10, 4)
    flat = [visit for number in range(5) for visit in visits[number]]
    assert flat == [(epoch, sample) for epoch in range(2) for sample in order(3, epoch, 10).tolist()]


def test_a_group_depends_on_its_number_alone_and_buckets_take_turns() -> None:
    bucket_n = [number % 3 for number in range(60)]
    forwards = [Visits(0, bucket_n, 4)[number] for number in range(40)]
    visits = Visits(0, bucket_n, 4)
    assert [visits[number] for number in reversed(range(40))] == forwards[::-1]
    assert Visits(1, bucket_n, 4)[0] != forwards[0]
    turns = [bucket_n[group[0][1]] for group in forwards]
    assert turns[:15] != sorted(turns[:15])
    assert [turns[:15].count(bucket) for bucket in range(3)] == [5, 5, 5]
