"""Configurations of full-size models from nothing but names and shapes, and what shapes cannot tell."""

import json

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection

import tiny
from checkpoints.test_ldm import originals_shapes
from controlnet.checkpoints import architecture, ldm
from controlnet.checkpoints.architecture import InFile, Told, told_of
from controlnet.checkpoints.contents import Family, Prediction
from controlnet.checkpoints.parts import structure
from controlnet.checkpoints.text_encoders import TEXT_ENCODERS, to_ldm
from controlnet.errors import UserError

# as the authors' folders in diffusers layout have them
UNETS: dict[Family, dict[str, object]] = {
    "sd1": {
        "block_out_channels": [320, 640, 1280, 1280],
        "cross_attention_dim": 768,
        "attention_head_dim": 8,
        "use_linear_projection": False,
        "sample_size": 64,
        "transformer_layers_per_block": 1,
        "in_channels": 4,
    },
    "sd2": {
        "block_out_channels": [320, 640, 1280, 1280],
        "cross_attention_dim": 1024,
        "attention_head_dim": [5, 10, 20, 20],
        "use_linear_projection": True,
        "sample_size": 96,
        "upcast_attention": True,
        "transformer_layers_per_block": 1,
        "in_channels": 4,
    },
    "sdxl": {
        "block_out_channels": [320, 640, 1280],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "cross_attention_dim": 2048,
        "attention_head_dim": [5, 10, 20],
        "use_linear_projection": True,
        "sample_size": 128,
        "transformer_layers_per_block": [1, 2, 10],
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
        "in_channels": 4,
    },
}
CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
VIT_H = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16}
VIT_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
TEXTS = {
    "sd1": [CLIP_L | {"hidden_act": "quick_gelu"}],
    "sd2": [VIT_H | {"hidden_act": "gelu"}],
    "sdxl": [CLIP_L | {"hidden_act": "quick_gelu"}, VIT_G | {"hidden_act": "gelu", "projection_dim": 1280}],
}
PREDICTIONS: dict[Family, Prediction] = {"sd1": "epsilon", "sd2": "v_prediction", "sdxl": "epsilon"}


def unet_in_file(family: Family) -> InFile:
    made = structure(UNet2DConditionModel, UNETS[family], "test")
    return InFile(ldm.UNET.prefix, ldm.to_ldm(ldm.UNET, made))


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_full_size_u_net_is_that_of_its_family(family: Family):
    found = architecture.unet_config(unet_in_file(family), family, PREDICTIONS[family], 1280, {})
    assert UNETS[family].items() <= found.items()
    assert (found["layers_per_block"], found["norm_num_groups"], found["out_channels"]) == (2, 32, 4)


@pytest.mark.parametrize(("name", "family"), [("sd15", "sd1"), ("sd21", "sd2")])
def test_the_originals_key_lists_make_models_with_the_originals_tensors(name: str, family: Family):
    file = {key: torch.empty(shape, device="meta") for key, shape in originals_shapes(name).items()}
    config = architecture.unet_config(InFile(ldm.UNET.prefix, file), family, "epsilon", None, {})
    made = structure(UNet2DConditionModel, config, "test")
    assert ldm.from_ldm(ldm.UNET, file, made).keys() == made.state_dict().keys()
    config = architecture.vae_config(InFile(ldm.VAE.prefix, file), family, {})
    made = structure(AutoencoderKL, config, "test")
    assert ldm.from_ldm(ldm.VAE, file, made).keys() == made.state_dict().keys()


@pytest.mark.parametrize(("family", "scale"), [("sd1", 0.18215), ("sd2", 0.18215), ("sdxl", 0.13025)])
def test_a_full_size_vae_is_that_of_its_family(family: Family, scale: float):
    shape = {
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "layers_per_block": 2,
        "norm_num_groups": 32,
        "latent_channels": 4,
        "in_channels": 3,
        "out_channels": 3,
    }
    file = ldm.to_ldm(ldm.VAE, structure(AutoencoderKL, shape, "test"))
    found = architecture.vae_config(InFile(ldm.VAE.prefix, file), family, {})
    assert (shape | {"scaling_factor": scale}).items() <= found.items()


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_full_size_text_encoders_are_those_of_their_family(family: Family):
    for encoder, expected in zip(TEXT_ENCODERS[family], TEXTS[family], strict=True):
        kind = CLIPTextModelWithProjection if "projection_dim" in expected else CLIPTextModel
        assert encoder.kind is kind
        model = structure(kind, expected | {"vocab_size": 49408, "projection_dim": expected["hidden_size"]}, "test")
        file = {
            name: tensor for name, tensor in to_ldm(encoder, model).items() if ".23." not in name or family != "sd2"
        }
        read = architecture.openclip_config if encoder.is_openclip else architecture.clip_config
        found = read(InFile(encoder.part.prefix, file), {})
        assert (expected | {"vocab_size": 49408, "max_position_embeddings": 77}).items() <= found.items()


def test_what_the_header_tells_holds_over_the_familys():
    narrow = ldm.to_ldm(ldm.UNET, tiny.unet("sd2"))
    told = {"attention_head_dim": [4, 8, 16, 16], "norm_num_groups": 8, "sample_size": 16}
    found = architecture.unet_config(InFile(ldm.UNET.prefix, narrow), "sd2", "epsilon", None, told)
    assert told.items() <= found.items()
    with pytest.raises(UserError, match="no multiple of the 64"):
        architecture.unet_config(InFile(ldm.UNET.prefix, narrow), "sd2", "epsilon", None, {})


def test_groups_that_channels_cannot_have_are_an_error():
    vae = AutoencoderKL(
        block_out_channels=(8,), down_block_types=("DownEncoderBlock2D",), up_block_types=("UpDecoderBlock2D",),
        norm_num_groups=4,
    )  # fmt: skip
    with pytest.raises(UserError, match=r"VAE has levels of \[8\] channels, which are normalised in groups of 32"):
        architecture.vae_config(InFile(ldm.VAE.prefix, ldm.to_ldm(ldm.VAE, vae)), "sd1", {})


def test_what_a_header_tells_comes_back_as_it_was():
    told = told_of(
        {"attention_head_dim": (1, 2), "norm_num_groups": 4, "in_channels": 4},
        {"scaling_factor": 0.3, "shift_factor": None},
        [{"num_attention_heads": 2, "hidden_act": "gelu", "hidden_size": 8}],
        {"beta_start": 0.1, "_diffusers_version": "1"},
        [{"tokenizer.json": "{}"}],
    )
    header = told.to_header("v_prediction")
    assert json.loads(header["controlnet"])["prediction_type"] == "v_prediction"
    assert Told.by(header) == Told(
        {"attention_head_dim": [1, 2], "norm_num_groups": 4},
        {"scaling_factor": 0.3},
        [{"num_attention_heads": 2, "hidden_act": "gelu"}],
        {"beta_start": 0.1},
        [{"tokenizer.json": "{}"}],
    )
    assert Told.by({}) == Told(text_encoders=[], tokenizers=[])


@pytest.mark.parametrize(
    "header",
    [
        "{",
        "[]",
        '{"base": []}',
        '{"base": {"unet": 3}}',
        '{"base": {"unet": {"sample_size": "large"}}}',
        '{"base": {"text_encoders": 3}}',
        '{"base": {"tokenizers": ["a"]}}',
        '{"base": {"scheduler": 4}}',
    ],
)
def test_a_damaged_header_is_an_error(header: str):
    with pytest.raises(UserError, match="its header is damaged"):
        Told.by({"controlnet": header})
