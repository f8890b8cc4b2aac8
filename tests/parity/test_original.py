"""With the same weights, the numbers of the original implementation."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from controlnet.base import Base
from controlnet.checkpoints import ldm
from controlnet.control import Decoder, Encoder, Features, Prompt, predict
from controlnet.generation.guidance import guided
from controlnet.generation.sampling import sample
from controlnet.generation.schedulers import make_scheduler, set_timesteps
from controlnet.generation.unit import Unit
from controlnet.generation.voices import Voice, controlled
from parity.reference import FAMILIES, numbers, relative_error, shared_numbers, unet_and_control, vae
from parity.weights import tensor

GUESS_SCALES = [0.825 ** (12 - index) for index in range(13)]
CONTROLS = {
    "eps.free": lambda control: None,
    "eps.control": lambda control: control,
    "eps.strength_0.7": lambda control: control.scaled([0.7] * 13),
    "eps.guess": lambda control: control.scaled(GUESS_SCALES),
    "eps.only_mid": Features.only_middle,
}
TOLERANCE = 1e-4
STABLE_DIFFUSION = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "set_alpha_to_one": False,
    "steps_offset": 1,
}

both = pytest.mark.parametrize("name", FAMILIES)


def test_the_weights_are_those_of_the_reference():
    assert tensor("a.weight", (2, 3)).ravel()[:2].tolist() == pytest.approx([-0.5737049, -0.06850766])


@both
def test_every_output_of_the_control_is_the_originals(name):
    expected = numbers(name, "forward")
    _, control = unet_and_control(name)
    with torch.no_grad():
        features = control(
            expected["x"], expected["t"], Prompt(expected["context"]), control.encode_hint(expected["hint"])
        )
    outputs = (*features.skips, features.middle)
    errors = [relative_error(output, expected[f"residual.{index}"]) for index, output in enumerate(outputs)]
    assert len(errors) == 13
    assert max(errors) < TOLERANCE


@both
@pytest.mark.parametrize("which", CONTROLS)
def test_the_prediction_is_the_originals(name, which):
    expected = numbers(name, "forward")
    unet, control = unet_and_control(name)
    prompt = Prompt(expected["context"])
    with torch.no_grad():
        features = control(expected["x"], expected["t"], prompt, control.encode_hint(expected["hint"]))
        prediction = predict(
            Encoder(unet), Decoder(unet), expected["x"], expected["t"], prompt, CONTROLS[which](features)
        )
    assert relative_error(prediction, expected[which]) < TOLERANCE


def original_alphas_cumprod() -> Tensor:
    """The schedule of Stable Diffusion: linear in the root of beta."""
    betas = torch.linspace(0.00085**0.5, 0.0120**0.5, 1000, dtype=torch.float64) ** 2
    return (1 - betas).cumprod(0).float()


@both
@pytest.mark.parametrize("mode", ["locked", "unlocked", "only_mid"])
def test_a_training_step_is_the_originals(name, mode):
    expected = numbers(name, "step")
    (unet, control), prompt = unet_and_control(name), Prompt(expected["context"])
    encoder, decoder = Encoder(unet), Decoder(unet)
    trained = [*control.parameters()]
    if mode == "unlocked":
        trained += [parameter.requires_grad_(True) for parameter in decoder.trainable_parameters()]
    optimizer = torch.optim.AdamW(trained, lr=1e-3)

    alpha = original_alphas_cumprod()[expected["t"]][:, None, None, None]
    noisy = alpha.sqrt() * expected["z"] + (1 - alpha).sqrt() * expected["noise"]
    features = control(noisy, expected["t"], prompt, control.encode_hint(expected["hint"]))
    if mode == "only_mid":
        features = features.only_middle()
    loss = mse_loss(predict(encoder, decoder, noisy, expected["t"], prompt, features), expected["noise"])
    loss.backward()
    gradients = gradients_by_original_name(unet, control)
    optimizer.step()
    after = ldm.to_ldm(ldm.UNET, unet) | ldm.to_ldm(ldm.CONTROL, control)

    assert loss.item() == pytest.approx(expected[f"{mode}.loss"].item(), rel=TOLERANCE)
    for key, value in expected.items():
        _, _, original_name = key.removeprefix(f"{mode}.").partition(".")
        if key.startswith(f"{mode}.after."):
            assert relative_error(after[original_name], value) < TOLERANCE, key
        # the original computes gradients of its locked decoder too, to no end; ours are not computed
        elif key.startswith(f"{mode}.grad.") and original_name in gradients:
            assert relative_error(gradients[original_name], value) < TOLERANCE, key


def gradients_by_original_name(unet, control) -> dict[str, Tensor]:
    """Of every parameter that is trained; zero where none came back."""
    return {
        part.prefix + original: parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
        for part, model in ((ldm.UNET, unet), (ldm.CONTROL, control))
        for ours, original in ldm.names(part, model.state_dict()).items()
        if (parameter := model.get_parameter(ours)).requires_grad
    }


def test_the_vae_is_the_originals():
    expected = shared_numbers("vae")
    model = vae("sd15")
    distribution = model.encode(expected["image"]).latent_dist
    assert relative_error(distribution.mean, expected["mean"]) < TOLERANCE
    assert relative_error(distribution.logvar, expected["logvar"]) < TOLERANCE
    decoded = model.decode(expected["latent"] / 0.18215).sample
    assert relative_error(decoded, expected["decoded"]) < TOLERANCE


@both
@pytest.mark.parametrize("guess", [False, True], ids=["plain", "guess"])
@pytest.mark.parametrize("steps", [5, 20, 30])
@torch.inference_mode()
def test_ddim_under_control_arrives_at_the_originals_latent(name, steps, guess):
    expected = numbers(name, "ddim")
    unet, control = unet_and_control(name)
    parts = {"unet": unet, "vae": vae(name), "text_encoders": [], "tokenizers": []}
    base = Base(**parts, scheduler_config=STABLE_DIFFUSION, family=FAMILIES[name], source=name)
    mode = "guess" if guess else "balanced"
    scheduler = make_scheduler("ddim", base.scheduler_config)
    # the original takes 31 steps when asked for 30
    timesteps = set_timesteps(scheduler, steps, expected["steps_30.timesteps"].tolist() if steps == 30 else None)
    assert torch.equal(timesteps, expected[f"steps_{steps}.timesteps"])
    voice = Voice.of_unit(Unit(control, expected["hint"], mode=mode), (128, 128), len(timesteps))
    sides = Prompt(expected["uncond_context"]), Prompt(expected["context"])
    denoise = guided(controlled(base, [voice]), *sides, [3.0 if guess else 9.0] * len(timesteps))
    latent = sample(denoise, scheduler, timesteps, expected["x_T"])
    assert relative_error(latent, expected[f"steps_{steps}.{mode if guess else 'plain'}.latent"]) < 1e-3
