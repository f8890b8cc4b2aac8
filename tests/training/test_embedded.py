"""The recipe of the embedded base: its words, its start, and a resume that changes nothing."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from torch import nn

from controlnet.cli.base import Train
from controlnet.data.shapes import draw_scene, render
from controlnet.training.embedded.diffusion import CENTRED
from controlnet.training.embedded.fit import Stage, fit
from controlnet.training.embedded.text import WORDS, make_tokenizer
from controlnet.training.embedded.vae import VAE, pass_colours_through, to_pixels


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory):
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def test_every_word_of_the_world_is_one_token_of_its_own(tokenizer):
    ids = [tokenizer(word, add_special_tokens=False).input_ids for word in WORDS]
    assert all(len(each) == 1 for each in ids)
    assert len({each[0] for each in ids}) == len(WORDS)


def test_other_words_fall_into_letters_and_nothing_is_unknown(tokenizer):
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("goldfish, é", add_special_tokens=False).input_ids)
    assert tokens[:4] == ["g", "o", "l", "d"]
    assert tokenizer.unk_token not in tokens


def test_the_untrained_vae_already_passes_colours():
    torch.manual_seed(0)
    usual, ours = AutoencoderKL(**VAE), AutoencoderKL(**VAE)
    pass_colours_through(ours)
    scenes = [draw_scene(np.random.default_rng(number)) for number in range(32)]
    pixels = to_pixels([render(scene, 64) for scene in scenes], torch.device("cpu"))

    def told_by_latents(vae: AutoencoderKL) -> float:
        """Share of the variance of the corner's colour that a linear map of the corner's latent explains."""
        with torch.no_grad():
            latent = vae.encode(pixels).latent_dist.mean[:, :, 0, 0]
        known = torch.cat([latent, torch.ones(len(latent), 1)], dim=1)
        colour = pixels[:, :, 0, 0]
        left = colour - known @ torch.linalg.lstsq(known, colour).solution
        return 1 - float(left.var() / colour.var())

    assert told_by_latents(ours) > 0.8 > told_by_latents(usual)


@pytest.mark.parametrize("parts", [1, 2])
def test_a_stopped_stage_ends_as_an_undisturbed_one(tmp_path: Path, parts: int):
    stage = Stage("line", steps=200, batch=8, learning_rate=0.1, warmup=5, ema=0.9, parts=parts)

    def train(folder: Path, stop_at: int | None) -> nn.Linear:
        torch.manual_seed(0)
        model = nn.Linear(3, 1)

        def loss(step: int, part: slice) -> torch.Tensor:
            if step == stop_at:
                raise KeyboardInterrupt
            x = torch.from_numpy(stage.random(7, step).standard_normal((stage.batch, 3), dtype=np.float32)[part])
            return ((model(x) - x.sum(1, keepdim=True)) ** 2).mean()

        fit(stage, model, loss, folder, lambda line: None, save_every=10)
        return model

    whole = train(tmp_path / "whole", None)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "stopped", 27)
    resumed = train(tmp_path / "stopped", None)
    again = train(tmp_path / "stopped", 0)  # finished: takes no step, so is not stopped
    for ours in (resumed, again):
        assert torch.equal(ours.weight, whole.weight)
        assert torch.equal(ours.bias, whole.bias)
    assert torch.allclose(whole.weight, torch.ones(1, 3), atol=0.05)


def test_the_rate_rises_stays_and_falls_to_zero():
    stage = Stage("any", steps=1000, batch=1, learning_rate=1.0, warmup=100, decay=0.3)
    rates = [stage.rate(step) for step in (0, 49, 99, 500, 699, 850, 1000)]
    assert rates == pytest.approx([0.01, 0.5, 1, 1, 1, 0.5, 0])


def test_the_command_trains_the_last_stage_as_long_as_the_shipped_base_was():
    assert Train(Path("base")).last_steps == CENTRED.steps
