"""The loop: noise in, latent out, whatever predicts."""

import pytest
import torch
from diffusers import DDPMScheduler, EulerDiscreteScheduler, PNDMScheduler
from torch import Tensor

from controlnet.errors import UserError
from controlnet.generation.sampling import SCHEDULERS, make_scheduler, sample

CONFIG = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "set_alpha_to_one": False,
}
TRUTH = 3 * torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
NOISE = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(2))
ALPHAS = DDPMScheduler.from_config(CONFIG).alphas_cumprod


def knows_the_noise(latent_bchw: Tensor, timestep: Tensor) -> Tensor:
    """The noise in the latent, if the picture is TRUTH."""
    alpha = ALPHAS[timestep]
    return (latent_bchw - alpha.sqrt() * TRUTH) / (1 - alpha).sqrt()


def knows_the_velocity(latent_bchw: Tensor, timestep: Tensor) -> Tensor:
    alpha = ALPHAS[timestep]
    return alpha.sqrt() * knows_the_noise(latent_bchw, timestep) - (1 - alpha).sqrt() * TRUTH


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("steps", [5, 20])
@pytest.mark.parametrize(
    ("denoise", "prediction_type"), [(knows_the_noise, "epsilon"), (knows_the_velocity, "v_prediction")]
)
def test_a_denoiser_that_knows_the_picture_arrives_at_it(name: str, steps: int, denoise, prediction_type: str):
    scheduler = make_scheduler(name, {**CONFIG, "prediction_type": prediction_type})
    latent = sample(denoise, scheduler, NOISE, steps)
    # the last step of DDIM leaves the noise of the first timestep, sqrt(1 - a) = 0.03
    assert (latent - TRUTH).abs().max() < 0.15


def test_every_step_is_told_once_with_its_latent():
    told: list[tuple[int, Tensor]] = []
    latent = sample(knows_the_noise, make_scheduler("ddim", CONFIG), NOISE, 3, lambda *step: told.append(step))
    assert [done for done, _ in told] == [1, 2, 3]
    assert torch.equal(told[-1][1], latent)


def test_an_unknown_scheduler_is_refused_with_the_known_ones():
    with pytest.raises(UserError, match="scheduler 'euler'; expected one of: ddim, unipc"):
        make_scheduler("euler", CONFIG)


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("saved", [PNDMScheduler, EulerDiscreteScheduler])
def test_the_base_s_noise_schedule_is_kept_whatever_scheduler_it_was_saved_with(
    name: str, saved, capfd: pytest.CaptureFixture[str]
):
    config = dict(saved.from_config({**CONFIG, "prediction_type": "v_prediction"}).config)
    scheduler = make_scheduler(name, config)
    torch.testing.assert_close(scheduler.alphas_cumprod, ALPHAS)
    assert scheduler.config.prediction_type == "v_prediction"
    assert capfd.readouterr() == ("", "")
