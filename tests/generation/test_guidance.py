"""Guidance as a function: what it asks for and what it makes of the answers."""

import pytest
import torch
from torch import Tensor

from controlnet.control import Prompt
from controlnet.errors import UserError
from controlnet.generation.guidance import guidance_scales, guided

LATENT, TIMESTEP = torch.randn(2, 4, 8, 8), torch.tensor(7)
NEGATIVE, POSITIVE = Prompt(torch.full((2, 1, 1), 3.0)), Prompt(torch.full((2, 1, 1), 5.0))


class Told:
    """Predicts the context's value everywhere, and remembers how many pictures it was asked for at which step."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []

    def __call__(self, latent_bchw: Tensor, timestep: Tensor, step: int, prompt: Prompt) -> Tensor:
        assert timestep == TIMESTEP
        assert latent_bchw is LATENT
        self.asked.append((step, len(prompt.context_btd)))
        return prompt.context_btd[:, :, :, None].expand(-1, 4, 8, 8)


def test_both_sides_are_asked_in_one_batch_and_extrapolated():
    told = Told()
    answer = guided(told, NEGATIVE, POSITIVE, [9.0])(LATENT, TIMESTEP, 0)
    assert torch.equal(answer, torch.full_like(LATENT, 3 + 9 * (5 - 3)))
    assert told.asked == [(0, 4)]


def test_at_scale_one_only_the_positive_side_is_asked():
    told = Told()
    denoise = guided(told, NEGATIVE, POSITIVE, [1.0, 2.0])
    assert torch.equal(denoise(LATENT, TIMESTEP, 0), torch.full_like(LATENT, 5))
    assert torch.equal(denoise(LATENT, TIMESTEP, 1), torch.full_like(LATENT, 7))
    assert told.asked == [(0, 2), (1, 4)]


def test_at_scale_zero_the_answer_is_the_negative_sides():
    assert torch.equal(guided(Told(), NEGATIVE, POSITIVE, [0.0])(LATENT, TIMESTEP, 0), torch.full_like(LATENT, 3))


@pytest.mark.parametrize(
    ("scale", "interval", "scales"),
    [
        (9, (0.0, 1.0), [9, 9, 9, 9]),
        ([1, 2, 3, 4], (0.0, 1.0), [1, 2, 3, 4]),
        (lambda progress: 8 * progress, (0.0, 1.0), [0, 2, 4, 6]),
        (9, (0.25, 0.75), [1, 9, 9, 1]),
        (9, (0.2, 0.7), [1, 9, 1, 1]),
    ],
    ids=["one", "a list", "a function", "an interval", "whole steps only"],
)
def test_the_scale_at_every_step(scale, interval: tuple[float, float], scales: list[float]):
    assert guidance_scales(scale, 4, interval) == scales


def test_a_list_of_another_length_than_the_steps_is_refused():
    with pytest.raises(UserError, match="a list of 3 values for 4 steps"):
        guidance_scales([1, 2, 3], 4)
