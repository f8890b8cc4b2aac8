"""Previews: a latent's colours without its VAE, and what a step believes in."""

import numpy as np
import pytest
import torch
from PIL import Image

from controlnet.base import Base, open_base
from controlnet.generation.pipeline import Report, generate
from controlnet.generation.preview import denoised, preview

PROMPT = "cyan circle with orange background"


@pytest.fixture(scope="module")
def base() -> Base:
    return open_base("embedded", device="cpu", dtype="float32")


def test_the_last_preview_has_the_colours_of_the_picture(base: Base):
    reports: list[Report] = []
    looks: list[np.ndarray] = []

    def watch(report: Report) -> None:
        reports.append(report)
        looks.append(report.preview())

    [picture] = generate(base, PROMPT, steps=5, guidance_scale=3.0, watch=watch)
    small = np.array(picture.resize((16, 16), Image.Resampling.BOX)).astype(int)
    assert [(report.done, report.total, list(report.pictures)) for report in reports] == [
        (step, 5, [0]) for step in range(1, 6)
    ]
    assert looks[-1].shape == (1, 16, 16, 3)
    assert np.abs(looks[-1][0] - small).mean() < 16
    assert np.abs(looks[0][0] - small).mean() < 64, "the first step already believes in something like it"


def test_a_preview_of_a_pictures_latent_is_the_picture_made_small(base: Base):
    grid = np.random.default_rng(1).integers(0, 256, (4, 4, 3)).astype(np.uint8)
    pixels = torch.from_numpy(grid.repeat(32, 0).repeat(32, 1)).permute(2, 0, 1)[None] / 127.5 - 1
    small = preview(base, base.encode_moments(pixels)[0])
    assert np.abs(small[0].astype(int) - grid.repeat(4, 0).repeat(4, 1)).mean() < 24


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_what_a_step_believes_in_is_the_latent_without_its_noise(base: Base, prediction_type: str, monkeypatch):
    clean, noise = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    timestep = torch.tensor(500.0)
    noisy = base.schedule.add_noise(clean, noise, timestep.long()[None])
    velocity = base.schedule.velocity(clean, noise, timestep.long()[None])
    object.__setattr__(base.schedule, "prediction_type", prediction_type)
    prediction = noise if prediction_type == "epsilon" else velocity
    torch.testing.assert_close(denoised(base, noisy, prediction, timestep), clean, rtol=1e-4, atol=1e-4)
    object.__setattr__(base.schedule, "prediction_type", "epsilon")
