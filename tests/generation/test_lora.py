"""A LoRA is W + weight alpha / rank up down, whatever its file calls the layers; all of it, or nothing."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import tiny_folders
from controlnet.base import Base, open_base
from controlnet.errors import UserError
from controlnet.generation.lora import HEADER, NAME_IN_FOLDER, load_lora

RANK = 4
ATTENTION = "down_blocks.1.attentions.0.transformer_blocks.0.attn1"
KERNEL = "down_blocks.1.resnets.0.conv1"


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Base]:
    home = tmp_path_factory.mktemp("bases")
    return {name: open_base(tiny_folders.save_tiny_base(home / name, name), "cpu") for name in ("sd1", "sdxl")}


def pair(stem: str, weight: Tensor, spelling: str, seed: int = 0) -> dict[str, Tensor]:
    """Random matrices, or kernels for a convolution, of a LoRA for a layer with this weight."""
    generator = torch.Generator().manual_seed(seed)
    down = torch.randn(RANK, *weight.shape[1:], generator=generator)
    up = torch.randn(len(weight), RANK, *[1] * (weight.ndim - 2), generator=generator)
    lower, upper = spelling.split()
    return {f"{stem}{lower}.weight": down, f"{stem}{upper}.weight": up}


def delta(tensors: dict[str, Tensor]) -> Tensor:
    down, up = tensors.values()
    return torch.einsum("or...,ri...->oi...", up[..., :1, :1], down) if down.ndim == 4 else up @ down


# how a layer is called in files, the layer, how the two matrices are called
SPELLINGS = [
    ("sd1", f"unet.{ATTENTION}.to_q", f"unet.{ATTENTION}.to_q", ".lora_A .lora_B"),
    ("sd1", f"unet.{ATTENTION}.to_out.0", f"unet.{ATTENTION}.to_out.0", ".lora.down .lora.up"),
    ("sd1", f"unet.{ATTENTION}.processor.to_out_lora", f"unet.{ATTENTION}.to_out.0", ".down .up"),
    ("sd1", f"{ATTENTION}.processor.to_k_lora", f"unet.{ATTENTION}.to_k", ".down .up"),
    ("sd1", f"unet.{KERNEL}", f"unet.{KERNEL}", ".lora_A .lora_B"),
    (
        "sd1",
        "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_v",
        f"unet.{ATTENTION}.to_v",
        ".lora_down .lora_up",
    ),
    (
        "sd1",
        "text_encoder.text_model.encoder.layers.0.self_attn.q_proj",
        "text.0.encoder.layers.0.self_attn.q_proj",
        ".lora_linear_layer.down .lora_linear_layer.up",
    ),
    (
        "sd1",
        "text_encoder.text_model.encoder.layers.0.self_attn.to_v_lora",
        "text.0.encoder.layers.0.self_attn.v_proj",
        ".down .up",
    ),
    ("sd1", "lora_te_text_model_encoder_layers_1_mlp_fc1", "text.0.encoder.layers.1.mlp.fc1", ".lora_down .lora_up"),
    # SDXL's second level is LDM's input_blocks 4 and 5
    (
        "sdxl",
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q",
        f"unet.{ATTENTION}.to_q",
        ".lora_down .lora_up",
    ),
    ("sdxl", "lora_te2_text_model_encoder_layers_1_mlp_fc2", "text.1.encoder.layers.1.mlp.fc2", ".lora_down .lora_up"),
]


def layer_of(base: Base, place: str) -> nn.Module:
    part, _, name = place.partition(".")
    if part == "unet":
        return base.unet.get_submodule(name)
    number, _, name = name.partition(".")
    encoder = base.text_encoders[int(number)]
    return getattr(encoder, "text_model", encoder).get_submodule(name)


@pytest.mark.parametrize(("family", "stem", "place", "spelling"), SPELLINGS)
def test_every_spelling_changes_its_layer_by_the_product(bases, tmp_path, family, stem, place, spelling):
    base, path = bases[family], tmp_path / "style.safetensors"
    weight = layer_of(base, place).weight
    before = weight.clone()
    tensors = pair(stem, weight, spelling)
    save_file(tensors, path)
    lora = load_lora(base, path, weight=0.5)
    torch.testing.assert_close(weight - before, 0.5 * delta(tensors))
    lora.remove()
    assert torch.equal(weight, before)


@pytest.mark.parametrize("how", ["kohya", "header"])
def test_alpha_over_rank_scales_the_change(bases: dict[str, Base], tmp_path: Path, how: str):
    base, path = bases["sd1"], tmp_path / "style.safetensors"
    weight = base.unet.get_submodule(f"{ATTENTION}.to_q").weight
    before, tensors = weight.clone(), pair(f"unet.{ATTENTION}.to_q", weight, ".lora_A .lora_B")
    if how == "kohya":
        save_file({**tensors, f"unet.{ATTENTION}.to_q.alpha": torch.tensor(1.0)}, path)
    else:
        save_file(tensors, path, {HEADER: json.dumps({"unet.r": RANK, "unet.lora_alpha": 1})})
    lora = load_lora(base, path)
    torch.testing.assert_close(weight - before, delta(tensors) / RANK)
    lora.remove()


@pytest.mark.parametrize(
    ("header", "problem"), [("{", "its header is damaged"), ('{"unet.use_dora": true}', "made with unet.use_dora")]
)
def test_a_header_that_says_what_we_do_not_know_is_refused(bases, tmp_path: Path, header: str, problem: str):
    weight = bases["sd1"].unet.get_submodule(KERNEL).weight
    save_file(pair(f"unet.{KERNEL}", weight, ".lora_A .lora_B"), tmp_path / "style.safetensors", {HEADER: header})
    with pytest.raises(UserError, match=problem):
        load_lora(bases["sd1"], tmp_path / "style.safetensors")


def test_two_add_up_and_the_last_is_removed_first(bases: dict[str, Base], tmp_path: Path):
    base, loras = bases["sd1"], []
    weight = base.unet.get_submodule(f"{ATTENTION}.to_q").weight
    before, total = weight.clone(), torch.zeros_like(weight)
    for seed in (1, 2):
        tensors = pair(f"unet.{ATTENTION}.to_q", weight, ".lora_A .lora_B", seed)
        save_file(tensors, tmp_path / f"{seed}.safetensors")
        loras.append(load_lora(base, tmp_path / f"{seed}.safetensors"))
        total += delta(tensors)
    torch.testing.assert_close(weight - before, total)
    for lora in reversed(loras):
        lora.remove()
    assert torch.equal(weight, before)


def test_the_folder_that_diffusers_writes_is_read(bases: dict[str, Base], tmp_path: Path):
    weight = bases["sd1"].unet.get_submodule(KERNEL).weight
    save_file(pair(f"unet.{KERNEL}", weight, ".lora_A .lora_B"), tmp_path / NAME_IN_FOLDER)
    lora = load_lora(bases["sd1"], tmp_path)
    assert lora.path == tmp_path / NAME_IN_FOLDER
    lora.remove()


@pytest.mark.parametrize(
    ("stem", "spelling"),
    [
        ("unet.no.such.layer", ".lora_A .lora_B"),
        ("lora_te2_text_model_encoder_layers_0_mlp_fc1", ".lora_down .lora_up"),
        (f"unet.{ATTENTION}.to_q", ".hada_w1_a .hada_w1_b"),
        (f"unet.{ATTENTION}.to_q", ".lora_A .lora_A.again"),
        ("unet.conv_in", ".lora_A .lora_B"),
    ],
    ids=["no layer", "another family", "another method", "half a pair", "another shape"],
)
def test_what_fits_only_in_part_changes_nothing_and_is_refused(bases, tmp_path, stem: str, spelling: str):
    base, path = bases["sd1"], tmp_path / "style.safetensors"
    weight = base.unet.get_submodule(f"{ATTENTION}.to_k").weight
    before = weight.clone()
    save_file(pair(stem, weight, spelling) | pair(f"unet.{ATTENTION}.to_k", weight, ".lora_A .lora_B"), path)
    with pytest.raises(UserError, match="fit nothing in this sd1 base"):
        load_lora(base, path)
    assert torch.equal(weight, before)


@pytest.mark.parametrize("name", ["none.safetensors", "style.bin", "."])
def test_other_files_are_refused(bases: dict[str, Base], tmp_path: Path, name: str):
    (tmp_path / "style.bin").write_bytes(b"pickle")
    with pytest.raises(UserError, match="expected a .safetensors file, or a folder with"):
        load_lora(bases["sd1"], tmp_path / name)
