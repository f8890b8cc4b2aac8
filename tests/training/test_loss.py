import pytest
import torch
from torch import Tensor

from controlnet.base import Schedule
from controlnet.control import Prompt
from controlnet.training.loss import Batch, Draw, denoising_loss

ALPHAS = torch.linspace(0.99, 0.01, 1000)
SHAPE = (4, 8, 8)


def make_batch(count: int) -> Batch:
    generator = torch.Generator().manual_seed(0)
    mean, deviation = torch.randn(2, count, *SHAPE, generator=generator)
    hint = torch.rand(count, 3, 64, 64, generator=generator)
    return Batch(mean, deviation.abs(), Prompt(torch.randn(count, 7, 8, generator=generator)), hint)


def draws(samples: list[tuple[int, int]], emptied: float = 0.0, seed: int = 0) -> Draw:
    return Draw.of(seed, samples, SHAPE, 1000, emptied)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_loss_is_the_mean_squared_error_to_noise_or_velocity(prediction_type: str) -> None:
    batch, draw = make_batch(3), draws([(0, 4), (0, 5), (1, 4)])
    seen: dict[str, Tensor] = {}

    def model(noisy: Tensor, timestep: Tensor, prompt: Prompt, hint: Tensor) -> Tensor:
        seen.update(noisy=noisy, timestep=timestep, context=prompt.context_btd, hint=hint)
        return 0.3 * noisy

    loss = denoising_loss(model, Schedule(ALPHAS, prediction_type), batch, draw)  # type: ignore[arg-type]

    by_hand = 0.0
    for i in range(3):
        alpha = ALPHAS[draw.timestep_b[i]].item()
        latent = batch.mean_bchw[i] + batch.deviation_bchw[i] * draw.posterior_noise_bchw[i]
        noise = draw.noise_bchw[i]
        noisy = alpha**0.5 * latent + (1 - alpha) ** 0.5 * noise
        velocity = alpha**0.5 * noise - (1 - alpha) ** 0.5 * latent
        target = noise if prediction_type == "epsilon" else velocity
        by_hand += ((target - 0.3 * noisy) ** 2).mean().item() / 3
        assert torch.allclose(seen["noisy"][i], noisy, atol=1e-6)
    assert loss.item() == pytest.approx(by_hand, rel=1e-5)
    assert torch.equal(seen["timestep"], draw.timestep_b)
    assert torch.equal(seen["hint"], batch.hint_bchw)
    assert torch.equal(seen["context"], batch.prompt.context_btd)


def test_the_draw_of_a_sample_does_not_depend_on_its_batch() -> None:
    alone, together = draws([(2, 7)], 0.5), draws([(0, 1), (2, 7), (2, 8)], 0.5)
    for one, many in zip(alone.__dict__.values(), together.__dict__.values(), strict=True):
        assert torch.equal(one[0], many[1])


def test_draws_differ_between_seeds_epochs_samples_and_kinds_of_noise() -> None:
    noises = [draws([key], seed=seed).noise_bchw for key, seed in (((0, 0), 0), ((0, 1), 0), ((1, 0), 0), ((0, 0), 1))]
    posterior = draws([(0, 0)]).posterior_noise_bchw
    distinct = {tuple(noise.flatten()[:4].tolist()) for noise in (*noises, posterior)}
    assert len(distinct) == 5


def test_timesteps_cover_the_schedule_evenly() -> None:
    timesteps = draws([(0, sample) for sample in range(2000)]).timestep_b
    assert timesteps.min() < 10
    assert timesteps.max() > 989
    assert abs(timesteps.float().mean() - 499.5) < 20


@pytest.mark.parametrize(("share", "low", "high"), [(0.0, 0, 0), (0.5, 450, 550), (1.0, 1000, 1000)])
def test_prompts_are_emptied_in_their_proportion(share: float, low: int, high: int) -> None:
    emptied = draws([(0, sample) for sample in range(1000)], share).empties_prompt_b.sum().item()
    assert low <= emptied <= high
