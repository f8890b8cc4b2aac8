"""What a file is, told from names and shapes: full-size models without their gigabytes, and narrow ones alike."""

import json

import pytest
import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

import tiny
from controlnet.checkpoints import ldm
from controlnet.checkpoints.contents import KINDS, SIGNS, part_of, recognise, wrong_kind
from controlnet.control import ControlNet
from parity.reference import HERE, original_tensors

FULL_SIZE = {
    "sd1": {"cross_attention_dim": 768, "attention_head_dim": 8},
    "sd2": {"cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True},
    "sdxl": {
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}
TEXT_ENCODERS = {
    "sd1": "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight",
    "sd2": "cond_stage_model.model.transformer.resblocks.0.ln_1.weight",
    "sdxl": "conditioner.embedders.0.transformer.text_model.final_layer_norm.weight",
}
each_family = pytest.mark.parametrize("family", tiny.FAMILIES)
each_size = pytest.mark.parametrize("size", ["narrow", "full"])


def unet(family: tiny.Family, size: str = "narrow", **others) -> UNet2DConditionModel:
    config = {**tiny.SHAPES[family], "cross_attention_dim": tiny.CONTEXT_WIDTH} if size == "narrow" else {}
    with torch.device("meta"):
        return UNet2DConditionModel(**{**(config or FULL_SIZE[family]), **others})


def control(family: tiny.Family, size: str = "narrow") -> ControlNet:
    with torch.device("meta"):
        return ControlNet.from_base(unet(family, size))


def diffusers_control(family: tiny.Family, size: str) -> ControlNetModel:
    with torch.device("meta"):
        return ControlNetModel.from_unet(unet(family, size), load_weights_from_unet=False)


def vae() -> AutoencoderKL:
    with torch.device("meta"):
        return AutoencoderKL(
            block_out_channels=(32, 64, 128, 128),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
        )


def ldm_base(family: tiny.Family, size: str = "narrow") -> dict[str, Tensor]:
    parts = ldm.to_ldm(ldm.UNET, unet(family, size)) | ldm.to_ldm(ldm.VAE, vae())
    return parts | {TEXT_ENCODERS[family]: torch.empty(2, 3), "betas": torch.empty(1000)}


def without_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


def named(*names: str, shape: tuple[int, ...] = (4, 4)) -> dict[str, Tensor]:
    return {name: torch.empty(shape) for name in names}


@each_size
@each_family
def test_a_single_file_base_is_known_by_structure_at_every_width(family, size):
    contents = recognise(ldm_base(family, size))
    assert (contents.kind, contents.layout, contents.family) == ("base", "ldm", family)
    assert contents.parts == ("unet", "vae", "text_encoder")
    assert not contents.is_inpainting


@each_size
@each_family
def test_a_control_is_known_in_each_of_its_layouts(family, size):
    made = control(family, size)
    prefixed = ldm.to_ldm(ldm.CONTROL, made)
    layouts = {
        "controlnet": made.state_dict(),
        "ldm": prefixed,
        "webui": without_prefix(prefixed, "control_model."),
        "diffusers": diffusers_control(family, size).state_dict(),
    }
    for layout, tensors in layouts.items():
        contents = recognise(tensors)
        assert (contents.kind, contents.layout, contents.family) == ("control", layout, family)
        assert contents.parts == ("control",)


@each_family
def test_a_unet_is_known_in_each_of_its_layouts(family):
    prefixed = ldm.to_ldm(ldm.UNET, unet(family))
    layouts = {
        "diffusers": unet(family).state_dict(),
        "ldm": prefixed,
        "webui": without_prefix(prefixed, "model.diffusion_model."),
    }
    for layout, tensors in layouts.items():
        contents = recognise(tensors)
        assert (contents.kind, contents.layout, contents.family) == ("unet", layout, family)


@pytest.mark.parametrize("name", ["sd15", "sd21"])
def test_the_originals_full_size_checkpoint_is_a_base_with_control(name):
    lines = [line.split("\t") for line in (HERE / f"{name}.keys.tsv").read_text().splitlines()]
    tensors = {key: torch.empty(tuple(map(int, shape.split(","))), device="meta") for key, shape in lines}
    contents = recognise(tensors)
    assert (contents.kind, contents.family) == ("base with control", {"sd15": "sd1", "sd21": "sd2"}[name])
    assert contents.parts == ("unet", "control", "vae")
    assert {part_of(key, contents) for key in tensors} == {"unet", "control", "vae"}


def test_moving_averages_are_a_part_of_their_own():
    tensors = ldm_base("sd1") | named("model_ema.diffusion_modelinput_blocks00weight", "model_ema.decay")
    assert recognise(tensors).parts == ("unet", "vae", "text_encoder", "ema")


def test_a_vae_alone_is_known_in_each_of_its_layouts():
    prefixed = ldm.to_ldm(ldm.VAE, vae())
    layouts = {
        "diffusers": vae().state_dict(),
        "ldm": prefixed,
        "webui": without_prefix(prefixed, "first_stage_model."),
    }
    found = {layout: recognise(tensors) for layout, tensors in layouts.items()}
    assert {layout: contents.layout for layout, contents in found.items()} == {layout: layout for layout in layouts}
    assert {(contents.kind, contents.parts) for contents in found.values()} == {("vae", ("vae",))}


@pytest.mark.parametrize("kind", [CLIPTextModel, CLIPTextModelWithProjection])
def test_a_text_encoder_is_known_as_each_version_of_transformers_names_it(kind):
    with torch.device("meta"):
        model = kind(CLIPTextConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8))
    assert recognise(model.state_dict()).kind == "text encoder"


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (("lora_unet_mid_block_attentions_0_proj_in.lora_down.weight",), "lora"),
        (("unet.mid_block.attentions.0.proj_in.lora_A.weight",), "lora"),
        (("mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.down.weight",), "lora"),
        (("lora_unet_mid_block_attentions_0_proj_in.hada_w1_a",), "lora"),
        (("lora_controlnet", "input_hint_block.0.weight", "zero_convs.0.0.weight"), "control lora"),
        (("input_hint_block.0.weight", "zero_convs.0.0.weight", "input_blocks.1.0.in_layers.2.down"), "control lora"),
        (("control_add_embedding.linear_1.weight", "controlnet_cond_embedding.conv_in.weight"), "union control"),
        (("controlnet_blocks.0.weight", "transformer_blocks.0.attn.add_q_proj.weight"), "transformer control"),
        (("adapter.body.0.resnets.0.block1.weight",), "t2i adapter"),
        (("body.0.block1.weight",), "t2i adapter"),
        (("image_proj.proj.weight", "ip_adapter.1.to_k_ip.weight"), "ip adapter"),
        (("model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight", "first_stage_model.x"), "sd3"),
        (("transformer_blocks.0.attn.add_q_proj.weight", "pos_embed.pos_embed"), "sd3"),
        (("double_blocks.0.img_attn.qkv.weight",), "flux"),
        (("model.diffusion_model.double_blocks.0.img_attn.qkv.weight",), "flux"),
        (("single_transformer_blocks.0.attn.to_q.weight", "transformer_blocks.0.attn.add_q_proj.weight"), "flux"),
        (("emb_params",), "embedding"),
        (("clip_g", "clip_l"), "embedding"),
        (("<a-cat>",), "embedding"),
        (("transformer.resblocks.0.ln_1.weight", "text_projection"), "text encoder"),
        (("layer.weight", "layer.bias"), "unknown"),
        ((), "unknown"),
    ],
)
def test_what_is_no_base_and_no_control_is_named(names, kind):
    assert recognise(named(*names)).kind == kind


@pytest.mark.parametrize("name", ["hed", "mlsd_large"])
def test_an_annotators_network_is_no_base(name):
    names = {
        "hed": ("norm", "block1.convs.0.weight", "block5.projection.weight"),
        "mlsd_large": ("backbone.features.0.0.weight", "block15.conv1.0.weight"),
    }[name]
    assert recognise(named(*names)).kind == "annotator"


def test_an_embedding_of_the_pickled_kind_is_told_by_what_stands_beside_tensors():
    assert recognise(named("*"), others={"string_to_token": {"*": 265}, "name": "cat"}).kind == "embedding"


@pytest.mark.parametrize(
    ("name", "width", "family"),
    [
        ("lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight", 768, "sd1"),
        ("unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k.lora_A.weight", 1024, "sd2"),
        ("unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k.lora_A.weight", 2048, "sdxl"),
        ("lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight", 1280, "sdxl"),
        ("emb_params", 768, "sd1"),
        ("lora_unet_out.lora_down.weight", 768, None),
    ],
)
def test_an_addition_belongs_to_the_family_whose_text_it_hears(name, width, family):
    assert recognise(named(name, shape=(4, width))).family == family


def test_a_refiner_is_not_taken_for_an_sdxl_base():
    refiner = unet("sd2", addition_embed_type="text_time", addition_time_embed_dim=8,
                   projection_class_embeddings_input_dim=64)  # fmt: skip
    contents = recognise(ldm.to_ldm(ldm.UNET, refiner))
    assert (contents.kind, contents.family) == ("refiner", None)


def test_nine_input_channels_are_an_inpainting_base():
    contents = recognise(ldm.to_ldm(ldm.UNET, unet("sd1", in_channels=9)))
    assert contents.is_inpainting
    assert contents.title == "SD 1.x U-Net alone, for inpainting"


@pytest.mark.parametrize(
    ("family", "metadata", "others", "prediction"),
    [
        ("sd1", {}, {}, "epsilon"),
        ("sd2", {}, {}, None),
        ("sdxl", {}, {}, "epsilon"),
        ("sd2", {}, {"global_step": 875_000}, "epsilon"),
        ("sd2", {}, {"global_step": 110_000}, "v_prediction"),
        ("sd2", {}, {"global_step": 140_000}, "v_prediction"),
        ("sd2", {}, {"global_step": 220_000}, "v_prediction"),
        ("sd2", {}, {"global_step": 5}, None),
        ("sd1", {}, {"global_step": 140_000}, "epsilon"),
        ("sd2", {"modelspec.prediction_type": "v"}, {}, "v_prediction"),
        ("sd2", {"modelspec.prediction_type": "epsilon"}, {"global_step": 220_000}, "epsilon"),
        ("sd2", {"controlnet": json.dumps({"prediction_type": "epsilon"})}, {}, "epsilon"),
        ("sd2", {}, {"controlnet": json.dumps({"prediction_type": "epsilon"})}, "epsilon"),
        ("sd2", {"controlnet": "damaged"}, {}, None),
    ],
)
def test_the_prediction_is_what_the_file_says_or_its_family_or_its_steps_tell(family, metadata, others, prediction):
    assert recognise(ldm_base(family), metadata, others).prediction == prediction


def test_a_marker_among_the_tensors_tells_v_prediction():
    assert recognise(ldm_base("sdxl") | named("v_pred")).prediction == "v_prediction"


def test_the_schedules_buffers_belong_to_no_part():
    tensors = original_tensors("sd15") | named("betas", "alphas_cumprod", shape=(1000,))
    assert {name for name in tensors if part_of(name, recognise(tensors)) == "other"} == {"betas", "alphas_cumprod"}


def test_in_a_file_of_one_part_every_tensor_belongs_to_it():
    state = control("sd1").state_dict()
    contents = recognise(state)
    assert {part_of(name, contents) for name in state} == {"control"}


def test_the_error_names_what_was_found_what_was_expected_and_what_to_do():
    contents = recognise(named("lora_te2_x.lora_down.weight"))
    assert wrong_kind("cat.safetensors", contents, "a base") == (
        "cat.safetensors: LoRA for SDXL; expected a base; a LoRA only changes the weights of a base: give the base "
        "that it was made for"
    )


def test_every_sign_is_of_a_kind_that_has_a_name():
    assert {sign.kind for sign in SIGNS} <= KINDS.keys()
