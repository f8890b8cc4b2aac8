"""The original's names: every tensor accounted for, in both directions."""

import csv

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn

import tiny
from controlnet.checkpoints import ldm
from controlnet.control import ControlNet
from controlnet.errors import UserError
from parity.reference import HERE, original_tensors

FULL_SIZE = {
    "sd15": {"cross_attention_dim": 768, "attention_head_dim": 8},
    "sd21": {"cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True},
}
full_size = pytest.mark.parametrize("name", FULL_SIZE)


def full_size_parts(name: str) -> dict[str, tuple[ldm.Part, nn.Module]]:
    """All of a single-file checkpoint but its text encoder, without its gigabytes."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**FULL_SIZE[name])
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
        )
        control = ControlNet.from_base(unet)
    return {"unet": (ldm.UNET, unet), "control": (ldm.CONTROL, control), "vae": (ldm.VAE, vae)}


def originals_shapes(name: str) -> dict[str, tuple[int, ...]]:
    with open(HERE / f"{name}.keys.tsv", newline="") as file:
        return {key: tuple(map(int, shape.split(","))) for key, shape in csv.reader(file, delimiter="\t")}


@full_size
def test_names_and_shapes_of_a_full_size_checkpoint_are_exactly_the_originals(name):
    made = [ldm.to_ldm(part, model) for part, model in full_size_parts(name).values()]
    shapes = {key: tuple(tensor.shape) for tensors in made for key, tensor in tensors.items()}
    assert sum(map(len, made)) == len(shapes) == 1274
    assert shapes == originals_shapes(name)


@full_size
def test_a_full_size_checkpoint_of_the_original_fills_every_tensor_of_ours(name):
    originals = {key: torch.empty(shape, device="meta") for key, shape in originals_shapes(name).items()}
    for part, model in full_size_parts(name).values():
        state = ldm.from_ldm(part, originals, model)
        expected = {key: tensor.shape for key, tensor in model.state_dict().items()}
        assert {key: tensor.shape for key, tensor in state.items()} == expected


@full_size
def test_the_tensors_that_a_controlnet_does_not_copy_are_the_originals_new_keys(name):
    _, control = full_size_parts(name)["control"]
    table = ldm.names(ldm.CONTROL, control.state_dict())
    new = {ldm.CONTROL.prefix + original for ours, original in table.items() if not ours.startswith("encoder.")}
    assert new == set((HERE / f"{name}.new_keys.txt").read_text().split())


@pytest.mark.parametrize(("name", "millions"), [("sd15", (859.52, 361.28)), ("sd21", (865.91, 364.23))])
def test_full_size_networks_have_the_originals_number_of_parameters(name, millions):
    parts = full_size_parts(name)
    counts = [sum(parameter.numel() for parameter in parts[part][1].parameters()) for part in ("unet", "control")]
    assert [count / 1e6 for count in counts] == pytest.approx(millions, abs=0.005)


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("part", [ldm.UNET, ldm.CONTROL], ids=["unet", "control"])
def test_there_and_back_again_every_tensor_is_bitwise_the_same(family, part):
    unet = tiny.unet(family)
    model = unet if part is ldm.UNET else tiny.randomised(ControlNet.from_base(unet), seed=3)
    back = ldm.from_ldm(part, ldm.to_ldm(part, model), model)
    assert all(torch.equal(back[name], tensor) for name, tensor in model.state_dict().items())


def test_the_added_conditions_of_sdxl_have_the_originals_name():
    names = ldm.names(ldm.UNET, tiny.unet("sdxl").state_dict())
    assert names["add_embedding.linear_2.bias"] == "label_emb.0.2.bias"


def test_all_that_does_not_fit_is_named_at_once():
    unet = tiny.unet("sd1")
    tensors = original_tensors("sd15")
    del tensors["model.diffusion_model.out.2.bias"]
    tensors["model.diffusion_model.adapter.weight"] = torch.zeros(1)
    tensors["model.diffusion_model.out.0.bias"] = torch.zeros(7)
    with pytest.raises(UserError) as error:
        ldm.from_ldm(ldm.UNET, tensors, unet)
    assert "1 missing: model.diffusion_model.out.2.bias" in str(error.value)
    assert "1 unexpected: model.diffusion_model.adapter.weight" in str(error.value)
    assert "model.diffusion_model.out.0.bias (7,), expected (32,)" in str(error.value)


def test_the_tensors_of_other_parts_are_no_defect():
    unet = tiny.unet("sd1")
    assert ldm.from_ldm(ldm.UNET, original_tensors("sd15"), unet).keys() == unet.state_dict().keys()


def test_a_module_that_the_original_does_not_have_is_an_error():
    with pytest.raises(KeyError, match="class_embedding"):
        ldm.names(ldm.UNET, ["class_embedding.weight"])
