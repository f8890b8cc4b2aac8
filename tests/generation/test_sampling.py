"""The loop: noise in, latent out, whatever predicts."""

import pytest
import torch
from diffusers import DDPMScheduler, EulerDiscreteScheduler, PNDMScheduler
from torch import Tensor

from controlnet.errors import UserError
from controlnet.generation.painting import blended, with_noise
from controlnet.generation.sampling import draw_noise, initial_noise, noise_sources, sample
from controlnet.generation.schedulers import SCHEDULERS, make_scheduler, set_timesteps, step_options

CONFIG = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "set_alpha_to_one": False,
}
TRUTH = 3 * torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
ALPHAS = DDPMScheduler.from_config(CONFIG).alphas_cumprod
SEEDS = [2, 3]
ORIGINAL_30 = list(range(991, 0, -33))  # the original walks 31 timesteps when asked for 30


def alpha_at(timestep: Tensor) -> Tensor:
    """Between timesteps, where some schedulers walk, log sigma is linear, as these schedulers take it."""
    log_sigmas = ((1 - ALPHAS) / ALPHAS).sqrt().log()
    low = timestep.floor().long().clamp(0, 998)
    log_sigma = torch.lerp(log_sigmas[low], log_sigmas[low + 1], (timestep - low).float())
    return 1 / (1 + (2 * log_sigma).exp())


def knows_the_noise(latent_bchw: Tensor, timestep: Tensor, step: int) -> Tensor:
    """The noise in the latent, if the picture is TRUTH."""
    alpha = alpha_at(timestep)
    return (latent_bchw - alpha.sqrt() * TRUTH) / (1 - alpha).sqrt()


def knows_the_velocity(latent_bchw: Tensor, timestep: Tensor, step: int) -> Tensor:
    alpha = alpha_at(timestep)
    return alpha.sqrt() * knows_the_noise(latent_bchw, timestep, step) - (1 - alpha).sqrt() * TRUTH


def sampled(name: str, denoise=knows_the_noise, steps: int = 5, eta: float = 0.0, told=None, **config) -> Tensor:
    scheduler = make_scheduler(name, {**CONFIG, **config})
    timesteps = set_timesteps(scheduler, steps)
    sources = noise_sources(SEEDS)
    first = draw_noise(sources, (4, 8, 8)) * scheduler.init_noise_sigma
    options = step_options(scheduler, eta, sources)
    return sample(denoise, scheduler, timesteps, first, on_step=told, **options)


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("steps", [2, 5, 20])
@pytest.mark.parametrize(
    ("denoise", "prediction_type"), [(knows_the_noise, "epsilon"), (knows_the_velocity, "v_prediction")]
)
def test_a_denoiser_that_knows_the_picture_arrives_at_it(name: str, steps: int, denoise, prediction_type: str):
    latent = sampled(name, denoise, steps, prediction_type=prediction_type)
    # the last step of DDIM leaves some of the noise of the first timestep: sqrt(1 - a) is 0.03 there
    assert (latent - TRUTH).abs().max() < 0.2


def test_with_eta_ddim_arrives_too_by_another_way():
    told: dict[float, list[Tensor]] = {0.0: [], 1.0: []}
    for eta, inputs in told.items():
        latent = sampled("ddim", eta=eta, told=lambda done, input_, prediction, inputs=inputs: inputs.append(input_))
        assert (latent - TRUTH).abs().max() < 0.2
    assert torch.equal(told[0.0][0], told[1.0][0])
    assert (told[0.0][2] - told[1.0][2]).abs().max() > 0.5


def believes_in_nothing(latent_bchw: Tensor, timestep: Tensor, step: int) -> Tensor:
    """A denoiser that keeps what noise makes of the latent."""
    return 0.5 * latent_bchw


@pytest.mark.parametrize("name", ["euler_a", "lcm"])
def test_the_noise_of_stochastic_steps_belongs_to_its_picture(name: str):
    both = sampled(name, believes_in_nothing)
    scheduler = make_scheduler(name, CONFIG)
    timesteps, source = set_timesteps(scheduler, 5), noise_sources(SEEDS[1:])
    first = draw_noise(source, (4, 8, 8)) * scheduler.init_noise_sigma
    alone = sample(believes_in_nothing, scheduler, timesteps, first, **step_options(scheduler, 0.0, source))
    assert torch.equal(both[1:], alone)
    silenced = sampled("euler", believes_in_nothing)
    assert (both - silenced).abs().max() > 0.5


def test_every_step_is_told_once_with_what_was_denoised():
    told: list[tuple[int, Tensor, Tensor]] = []
    sampled("ddim", steps=3, told=lambda *step: told.append(step))
    assert [done for done, _, _ in told] == [1, 2, 3]
    assert torch.equal(told[0][1], initial_noise(SEEDS, (4, 8, 8)))
    assert torch.equal(told[0][2], knows_the_noise(told[0][1], torch.tensor(667), 0))


def test_what_settles_the_latent_after_a_step_is_what_goes_on():
    scheduler = make_scheduler("ddim", CONFIG)
    timesteps = set_timesteps(scheduler, 3)
    latent = sample(knows_the_noise, scheduler, timesteps, TRUTH, settle=lambda latent, step: TRUTH * step)
    assert torch.equal(latent, TRUTH * 2)


@pytest.mark.parametrize("name", ["ddim", "euler", "heun", "dpmpp_2m", "lcm"])
def test_given_timesteps_are_walked(name: str):
    scheduler = make_scheduler(name, CONFIG)
    given = [951, 751, 551, 351, 151]
    walked = set_timesteps(scheduler, 20, given)
    assert list(dict.fromkeys(walked.tolist())) == given
    latent = sample(knows_the_noise, scheduler, walked, initial_noise(SEEDS, (4, 8, 8)) * scheduler.init_noise_sigma)
    assert (latent - TRUTH).abs().max() < 0.5


def test_ddim_walks_the_31_timesteps_of_the_original_to_the_last_alpha():
    scheduler = make_scheduler("ddim", CONFIG)
    walked = set_timesteps(scheduler, 30, ORIGINAL_30)
    assert walked.tolist() == ORIGINAL_30
    assert len(ORIGINAL_30) == 31
    latent = sample(knows_the_noise, scheduler, walked, initial_noise(SEEDS, (4, 8, 8)))
    assert (latent - TRUTH).abs().max() < 0.2


@pytest.mark.parametrize(
    ("name", "timesteps", "problem"),
    [
        ("unipc", [951, 751], "takes no timesteps; choose one of: ddim, euler, heun, dpmpp_2m, dpmpp_2m_karras, lcm"),
        ("ddim", [951, 751, 600], "at one distance"),
        ("ddim", [951, 551], "at one distance"),
        ("lcm", None, "timesteps"),
    ],
)
def test_timesteps_that_a_scheduler_cannot_walk_are_refused(name: str, timesteps: list[int] | None, problem: str):
    with pytest.raises(UserError, match=problem):
        set_timesteps(make_scheduler(name, CONFIG), 900, timesteps)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_from_a_picture_only_the_last_of_the_steps_are_walked(name: str):
    whole = set_timesteps(make_scheduler(name, CONFIG), 10)
    scheduler = make_scheduler(name, CONFIG)
    part = set_timesteps(scheduler, 10, image_strength=0.35)  # 3 of 10, by diffusers' rule
    assert torch.equal(part, whole[-len(part) :])
    assert len(part) == (5 if name == "heun" else 3)
    noise = initial_noise(SEEDS, (4, 8, 8))
    first = scheduler.add_noise(TRUTH, noise, part[:1])
    latent = sample(knows_the_noise, scheduler, part, first, **step_options(scheduler, 0.0, noise_sources(SEEDS)))
    assert (latent - TRUTH).abs().max() < 0.2


def test_an_unknown_scheduler_is_refused_with_the_known_ones():
    with pytest.raises(UserError, match="scheduler 'plms'; expected one of: ddim, euler, euler_a, heun, dpmpp_2m"):
        make_scheduler("plms", CONFIG)


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


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("image_strength", [0.6, 1.0])
def test_what_is_kept_is_always_as_noisy_as_the_next_step_expects(name: str, image_strength: float):
    scheduler, sources = make_scheduler(name, CONFIG), noise_sources(SEEDS)
    timesteps, noise = set_timesteps(scheduler, 10, image_strength=image_strength), draw_noise(sources, (4, 8, 8))
    left = torch.zeros(1, 1, 8, 8)
    left[..., :4] = 1
    predictions: list[Tensor] = []
    sample(
        knows_the_noise,
        scheduler,
        timesteps,
        with_noise(scheduler, TRUTH, noise, timesteps[0]),
        blended(scheduler, timesteps, TRUTH, noise, left),
        lambda done, input_, prediction: predictions.append(prediction),
        **step_options(scheduler, 0.0, sources),
    )
    kept = [(prediction - noise)[..., 4:].abs().max().item() for prediction in predictions]
    assert max(kept) < 0.1
