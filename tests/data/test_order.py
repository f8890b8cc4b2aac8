import numpy as np
import pytest
import torch

from controlnet.data.order import keyed, order, sample_generator


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
