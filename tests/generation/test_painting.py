"""From a picture, and into one."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import tiny
from controlnet.base import Base
from controlnet.control import ControlNet
from controlnet.errors import UserError
from controlnet.generation.pipeline import generate
from controlnet.generation.settings import Settings
from controlnet.generation.unit import Unit
from tiny_generation import grey_levels_apart, latents, loud, request

SIDE = 64
PICTURES = np.random.default_rng(0).integers(0, 256, (2, SIDE, SIDE, 3), np.uint8)
HINT = torch.rand(3, SIDE, SIDE, generator=torch.Generator().manual_seed(5))
MASK = np.zeros((SIDE, SIDE))
MASK[:, 20:] = 1  # in the middle of a latent's cell


@pytest.fixture(scope="module")
def inpainting(base: Base) -> Base:
    """A base whose U-Net sees mask and masked picture beside the latent."""
    unet = type(base.unet).from_config({**base.unet.config, "in_channels": 9})
    tiny.randomised(unet)
    return replace(base, unet=unet, source="inpainting")


def painted(base: Base, **options) -> np.ndarray:
    # the tiny VAE's picture is not the picture: what is compared are latents' pictures
    return generate(base, "red", **{"steps": 4, "size": (SIDE, SIDE), "image": PICTURES[0], **options}).pixels_nhwc


def test_the_weaker_the_nearer_to_the_picture(base: Base):
    settings = [Settings(steps=10, image_strength=strength, guidance_scale=3.0) for strength in (0.1, 0.5, 1.0)]
    asked = [request(base, [], it, image=PICTURES[0], size_hw=(SIDE, SIDE)) for it in settings]
    canvas = asked[0].canvas()
    assert canvas is not None
    distances = [(latents(it) - canvas.latents(base)).norm().item() for it in asked]
    assert distances == sorted(distances)
    assert distances[2] > 2 * distances[0]


def test_at_strength_one_all_steps_are_walked_and_the_picture_drowns_but_for_a_little(base: Base):
    """Of the picture sqrt(alpha) of the first timestep is left, of the noise the rest: nearly text to image."""
    settings = Settings(steps=4, image_strength=1.0)
    of_picture, of_other = (
        latents(request(base, [], settings, image=picture, size_hw=(SIDE, SIDE))) for picture in PICTURES
    )
    free = latents(request(base, [], settings, size_hw=(SIDE, SIDE)))
    assert 0 < (of_picture - of_other).norm() < 0.5 * of_picture.norm()
    assert request(base, [], settings, image=PICTURES[0]).step_count == 4
    assert not torch.equal(of_picture, free)


def test_every_picture_starts_from_its_own_image_or_all_from_one(base: Base):
    both = generate(base, "red", count=2, steps=4, image=list(PICTURES), size=(SIDE, SIDE), seed=5)
    second = generate(base, "red", steps=4, image=PICTURES[1], size=(SIDE, SIDE), seed=6)
    shared = generate(base, "red", count=2, steps=4, image=PICTURES[1], size=(SIDE, SIDE), seed=5)
    assert grey_levels_apart(both[1], second[0]) <= 1
    assert grey_levels_apart(shared[1], second[0]) <= 1
    assert grey_levels_apart(shared[0], both[0]) > 1


def test_the_size_is_the_images_by_the_originals_rule(base: Base):
    assert generate(base, "red", image=np.zeros((50, 110, 3), np.uint8), steps=2)[0].size == (256, 128)


@pytest.mark.parametrize("kind", ["base", "inpainting"])
@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_outside_the_mask_the_picture_is_itself_pixel_for_pixel(kind: str, strength: float, request):
    base = request.getfixturevalue(kind)
    pixels = painted(base, mask=MASK, image_strength=strength)[0]
    assert np.array_equal(pixels[:, :20], PICTURES[0][:, :20])
    assert grey_levels_apart(pixels[:, 20:], PICTURES[0][:, 20:]) > 5


def test_a_soft_mask_mixes_painted_and_given_pixels(base: Base):
    full, half, none = (painted(base, mask=np.full((SIDE, SIDE), value))[0].astype(int) for value in (1.0, 0.6, 0.0))
    assert grey_levels_apart(half, 0.6 * full + 0.4 * PICTURES[0]) <= 1
    assert np.array_equal(none, PICTURES[0])


def test_inpainting_starts_from_noise_alone_at_strength_one(base: Base):
    settings = Settings(steps=4, image_strength=1.0)
    everywhere = latents(request(base, [], settings, image=PICTURES[0], mask=MASK * 0 + 1, size_hw=(SIDE, SIDE)))
    assert torch.equal(everywhere, latents(request(base, [], settings, size_hw=(SIDE, SIDE))))


def test_a_control_of_the_plain_base_steers_an_inpainting_base(base: Base, inpainting: Base):
    alone = painted(inpainting, mask=MASK)
    controlled = painted(inpainting, mask=MASK, units=[Unit(loud(base), HINT)])
    assert grey_levels_apart(alone, controlled) > 5


def test_a_control_of_an_inpainting_base_sees_the_mask_too(inpainting: Base):
    control = loud(inpainting)
    seen: list[int] = []
    control.encoder.conv_in.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape[1]))
    painted(inpainting, mask=MASK, units=[Unit(control, HINT)], steps=1, image_strength=1.0)
    assert seen == [9]


def test_an_inpainting_base_sees_the_mask_and_what_is_kept(inpainting: Base):
    pictures = [PICTURES[0], np.where(MASK[..., None] > 0, 255 - PICTURES[0], PICTURES[0]), PICTURES[1]]
    same, hidden, other = (
        latents(
            request(inpainting, [], Settings(steps=2, image_strength=1.0), image=it, mask=MASK, size_hw=(SIDE, SIDE))
        )
        for it in pictures
    )
    assert torch.equal(same, hidden)
    assert not torch.allclose(same, other, rtol=0.01)


def test_an_inpainting_base_wants_an_image_and_a_mask(inpainting: Base):
    for given in ({}, {"image": PICTURES[0]}):
        with pytest.raises(UserError, match="was made for inpainting; give an image and a mask"):
            generate(inpainting, "red", steps=1, **given)


def test_a_silent_control_is_silent_in_pictures_too(base: Base):
    silent = ControlNet.from_base(base.unet)
    units = [Unit(silent, HINT)]
    assert np.array_equal(painted(base, mask=MASK, units=units), painted(base, mask=MASK))
