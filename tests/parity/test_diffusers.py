"""With the same weights, the numbers of diffusers' own ControlNet."""

import re

import pytest
import torch
from diffusers import ControlNetModel
from torch import Tensor

import tiny
from controlnet.control import ControlNet, Decoder, Encoder, predict
from parity.reference import relative_error

TOLERANCE = 1e-5
TO_DIFFUSERS = (
    (r"^encoder\.(embed_time\.)?", ""),
    (r"^zero_convs\.", "controlnet_down_blocks."),
    (r"^zero_conv_middle\.", "controlnet_mid_block."),
    (r"^hint_encoder\.0\.", "controlnet_cond_embedding.conv_in."),
    (r"^hint_encoder\.14\.", "controlnet_cond_embedding.conv_out."),
)


def diffusers_name(name: str) -> str:
    for pattern, replacement in TO_DIFFUSERS:
        name = re.sub(pattern, replacement, name)
    # between its first and last convolution ours counts activations too: 2, 4, .. 12 are blocks 0, 1, .. 5
    return re.sub(
        r"^hint_encoder\.(\d+)\.", lambda found: f"controlnet_cond_embedding.blocks.{int(found[1]) // 2 - 1}.", name
    )


def twin(unet, control: ControlNet) -> ControlNetModel:
    model = ControlNetModel.from_unet(unet, conditioning_channels=3)
    model.load_state_dict({diffusers_name(name): value for name, value in control.state_dict().items()}, strict=True)
    return model.eval()


@pytest.mark.parametrize("family", tiny.FAMILIES)
@torch.no_grad()
def test_control_and_prediction_are_those_of_diffusers(family):
    unet = tiny.unet(family)
    control = tiny.randomised(ControlNet.from_base(unet), seed=5)
    latent, timestep, prompt, hint = tiny.inputs(family)
    features = control(latent, timestep, prompt, control.encode_hint(hint))
    mine: Tensor = predict(Encoder(unet), Decoder(unet), latent, timestep, prompt, features)

    conditions = {"encoder_hidden_states": prompt.context_btd, "added_cond_kwargs": prompt.added}
    skips, middle = twin(unet, control)(latent, timestep, controlnet_cond=hint, return_dict=False, **conditions)
    theirs = unet(
        latent, timestep, down_block_additional_residuals=skips, mid_block_additional_residual=middle, **conditions
    ).sample
    free = unet(latent, timestep, **conditions).sample

    assert len(skips) == len(features.skips)
    pairs = [*zip(features.skips, skips, strict=True), (features.middle, middle), (mine, theirs)]
    assert max(relative_error(ours, other) for ours, other in pairs) < TOLERANCE
    assert relative_error(free, theirs) > 0.1, "control matters, or the comparison says nothing"
