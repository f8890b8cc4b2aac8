"""The base that ships: small, the same for diffusers as for us, and it knows what its card says."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline

from controlnet.base import Base, open_base
from controlnet.checkpoints.control_file import load_control
from controlnet.data.circles import draw_circle, ring
from controlnet.evaluation.fidelity import mean_fidelity
from controlnet.evaluation.text_accuracy import text_accuracy
from controlnet.generation.pipeline import generate_pixels
from controlnet.generation.sampling import initial_noise
from controlnet.generation.settings import Settings
from controlnet.generation.unit import Unit

ASSETS = Path(__file__).parent.parent / "src/controlnet/assets"


@pytest.fixture(scope="module")
def base() -> Base:
    return open_base("embedded", device="cpu", dtype="float32")


def test_it_is_under_16_mebibytes_in_all():
    assert sum(path.stat().st_size for path in (ASSETS / "embedded").rglob("*")) < 16 * 2**20


def test_it_has_the_classes_and_levels_of_stable_diffusion(base: Base):
    index = json.loads((ASSETS / "embedded/model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionPipeline"
    assert (base.family, base.schedule.prediction_type, base.resolution, base.factor) == ("sd1", "epsilon", 128, 8)
    skips, middle = _features(base)
    assert len(skips) == 12
    assert middle.shape[2:] == (2, 2)


def _features(base: Base) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
    with torch.no_grad():
        features = base.encoder(torch.zeros(1, 4, 16, 16), torch.tensor([5]), base.encode_prompts([""]))
    return features.skips, features.middle


def test_diffusers_gives_the_same_picture_for_the_same_noise(base: Base):
    prompt, noise = "cyan circle with pink background", initial_noise([3], (4, 16, 16))
    ours = generate_pixels(base, [prompt], [3], settings=Settings(steps=20, guidance_scale=3.0))[0]
    pipeline = StableDiffusionPipeline.from_pretrained(ASSETS / "embedded", torch_dtype=torch.float32)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(prompt, num_inference_steps=20, guidance_scale=3.0, latents=noise, output_type="np").images[0]
    assert np.abs(ours - 255 * theirs).max() <= 1.0


def test_it_paints_the_colours_that_it_is_told(base: Base):
    accuracy, _ = text_accuracy(base, count=32, seed=1)
    assert accuracy.background >= 0.7
    assert accuracy.colour >= 0.6


def test_the_packaged_control_obeys_rings_and_without_it_the_base_does_not(base: Base):
    control, metadata = load_control("circle", base)
    assert metadata.condition == "circle"
    drawn = [draw_circle(77, number) for number in range(12)]
    hints = [ring(scene, 128, thickness) for scene, thickness in drawn]
    prompts = [scene.caption for scene, _ in drawn]
    unit = Unit(control.float(), torch.from_numpy(np.stack(hints)).permute(0, 3, 1, 2))
    obeyed, free = (
        mean_fidelity(generate_pixels(base, prompts, range(12), units, batch_size=12), hints) for units in ([unit], [])
    )
    assert obeyed >= 0.8
    assert free <= 0.4
