"""Guidance as a function: what it asks for and what it makes of the answers."""

import torch
from torch import Tensor

from controlnet.control import Prompt
from controlnet.generation.guidance import guided

LATENT, TIMESTEP = torch.randn(2, 4, 8, 8), torch.tensor(7)
NEGATIVE, POSITIVE = Prompt(torch.full((2, 1, 1), 3.0)), Prompt(torch.full((2, 1, 1), 5.0))


class Told:
    """Predicts the context's value everywhere, and remembers what it was asked."""

    def __init__(self) -> None:
        self.latents: list[Tensor] = []

    def __call__(self, latent_bchw: Tensor, timestep: Tensor, prompt: Prompt) -> Tensor:
        assert timestep == TIMESTEP
        self.latents.append(latent_bchw)
        return prompt.context_btd[:, :, :, None].expand_as(latent_bchw)


def test_both_sides_are_asked_in_one_batch_and_extrapolated():
    told = Told()
    answer = guided(told, NEGATIVE, POSITIVE, 9.0)(LATENT, TIMESTEP)
    assert torch.equal(answer, torch.full_like(LATENT, 3 + 9 * (5 - 3)))
    assert len(told.latents) == 1
    assert torch.equal(told.latents[0], torch.cat([LATENT, LATENT]))


def test_at_scale_one_only_the_positive_side_is_asked():
    told = Told()
    answer = guided(told, NEGATIVE, POSITIVE, 1.0)(LATENT, TIMESTEP)
    assert torch.equal(answer, torch.full_like(LATENT, 5))
    assert torch.equal(told.latents[0], LATENT)


def test_at_scale_zero_the_answer_is_the_negative_sides():
    assert torch.equal(guided(Told(), NEGATIVE, POSITIVE, 0.0)(LATENT, TIMESTEP), torch.full_like(LATENT, 3))
