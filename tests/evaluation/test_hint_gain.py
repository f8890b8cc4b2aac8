import torch

from controlnet.evaluation.hint_gain import hint_gain

HINT = torch.arange(4.0)[:, None, None, None].expand(4, 3, 8, 8)


def test_a_model_that_hears_no_hint_has_gain_zero() -> None:
    assert hint_gain(lambda _: 0.4, HINT).gain == 0


def test_a_loss_that_halves_with_the_true_hint_has_gain_one_half() -> None:
    measured = hint_gain(lambda hint: 0.2 if torch.equal(hint, HINT) else 0.4, HINT)
    assert measured.gain == 0.5
    assert measured.loss == 0.2


def test_every_sample_is_given_the_hint_of_another() -> None:
    given: list[torch.Tensor] = []

    def loss(hint: torch.Tensor) -> float:
        given.append(hint)
        return 1.0

    hint_gain(loss, HINT)
    true, others = given
    assert (true != others).flatten(1).all()
    assert torch.equal(others.sort(dim=0).values, true)
