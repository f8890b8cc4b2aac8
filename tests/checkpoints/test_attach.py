"""A control attached to a base: its encoder copied by name, the rest new and silent."""

from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel

import tiny
from checkpoints.made import of_part, same, save_base
from checkpoints.test_ldm import FULL_SIZE, originals_shapes
from controlnet.base import open_base
from controlnet.checkpoints import ldm
from controlnet.checkpoints.attach import attach
from controlnet.checkpoints.base_file import load_base_file
from controlnet.checkpoints.base_tensors import base_in, open_base_tensors
from controlnet.checkpoints.control_file import load_control
from controlnet.checkpoints.control_formats import open_control, to_names
from controlnet.checkpoints.tensor_file import TensorFile, open_tensors, write_tensors
from controlnet.cli.main import run
from controlnet.errors import UserError
from parity.reference import HERE

families = pytest.mark.parametrize("family", tiny.FAMILIES)
Bases = dict[str, tuple[Path, Path]]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Bases:
    """By family, a folder and the single file of the same."""
    home = tmp_path_factory.mktemp("bases")
    return {family: save_base(home / family, family) for family in tiny.FAMILIES}


@pytest.mark.parametrize("name", FULL_SIZE)
def test_the_new_weights_of_a_full_size_base_are_the_originals_and_in_its_order(name):
    shapes = {key: shape for key, shape in originals_shapes(name).items() if not key.startswith("control_model.")}
    shapes["cond_stage_model.transformer.text_model.final_layer_norm.weight"] = (768,)
    tensors = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    attached = attach(base_in(TensorFile(Path("base.ckpt"), tensors, {}, {})))
    assert attached.new_names() == (HERE / f"{name}.new_keys.txt").read_text().split()
    assert len(attached.copied) == 298
    made = {key: tuple(tensor.shape) for key, tensor in to_names(attached.state, "ldm").items()}
    assert made == {key: shape for key, shape in originals_shapes(name).items() if key.startswith("control_model.")}


@families
@torch.no_grad()
def test_an_attached_control_is_a_silent_copy_of_the_bases_encoder(bases, tmp_path, family):
    folder, file = bases[family]
    base = open_base(folder, "cpu", "float32")
    unet = tiny.unet(family).state_dict()
    latent, timestep, prompt, hint = tiny.inputs(family)
    for source in (folder, file):
        out = tmp_path / f"of-{source.name}.safetensors"
        assert run(["attach", str(source), str(out)]) == 0
        control, metadata = load_control(out, base)
        said = control(latent, timestep, prompt, control.encode_hint(hint))
        assert not any(feature.any() for feature in (*said.skips, said.middle))
        names = to_names(control.state_dict(), "diffusers")
        copied = {name: tensor for name, tensor in names.items() if not name.startswith("controlnet_")}
        assert same(copied, {name: unet[name] for name in copied})
        assert (metadata.family, metadata.condition) == (family, "unknown")


@families
def test_the_full_model_is_the_base_as_it_was_and_its_control(bases, tmp_path, family):
    folder, file = bases[family]
    assert run(["attach", str(folder), str(tmp_path / "full.ckpt")]) == 0
    assert run(["attach", str(file), str(tmp_path / "control.safetensors")]) == 0
    full, control = open_tensors(tmp_path / "full.ckpt").tensors, open_control(tmp_path / "control.safetensors")
    assert same(of_part(full, ldm.CONTROL), to_names(control.state, "ldm"))
    base = {name: tensor for name, tensor in full.items() if not name.startswith(ldm.CONTROL.prefix)}
    assert same(base, dict(open_tensors(file).tensors))
    assert same(dict(open_control(tmp_path / "full.ckpt").state), dict(control.state))


def test_a_full_model_in_safetensors_still_opens_as_a_base_and_as_a_control(bases, tmp_path):
    folder, file = bases["sd1"]
    assert run(["attach", str(file), str(tmp_path / "full.safetensors"), "--to", "ldm"]) == 0
    parts = load_base_file(tmp_path / "full.safetensors", None)
    assert same(parts.unet.state_dict(), UNet2DConditionModel.from_pretrained(folder / "unet").state_dict())
    assert open_control(tmp_path / "full.safetensors").metadata.architecture["attention_head_dim"] == 8


def test_every_weight_of_a_full_model_has_memory_of_its_own(bases, tmp_path):
    assert run(["attach", str(bases["sd1"][1]), str(tmp_path / "full.ckpt")]) == 0
    loaded = torch.load(tmp_path / "full.ckpt", weights_only=True)["state_dict"]
    assert len({tensor.untyped_storage().data_ptr() for tensor in loaded.values()}) == len(loaded)


def test_the_new_weights_are_printed_by_the_originals_names_with_both_counts(bases, tmp_path, capsys):
    assert run(["attach", str(bases["sd1"][1]), str(tmp_path / "control.safetensors")]) == 0
    *new, summary = capsys.readouterr().out.splitlines()
    assert new == (HERE / "sd15.new_keys.txt").read_text().split()
    assert summary.startswith("42 weights are newly added, 298 are copied")


def test_the_same_seed_draws_the_same_hint_encoder(bases):
    base = open_base_tensors(bases["sd1"][1])
    first, again, other = (attach(base, seed=seed).state["hint_encoder.0.weight"] for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_hints_may_have_other_channels(bases):
    assert attach(open_base_tensors(bases["sd1"][1]), hint_channels=4).state["hint_encoder.0.weight"].shape[1] == 4


def test_a_half_precision_base_gets_a_half_precision_control(bases, tmp_path):
    file = open_tensors(bases["sd1"][1])
    write_tensors(tmp_path / "half.safetensors", file.tensors, file.metadata, torch.float16)
    attached = attach(open_base_tensors(tmp_path / "half.safetensors"))
    assert {tensor.dtype for tensor in attached.state.values()} == {torch.float16}


def test_the_averaged_weights_are_copied_when_asked_for(bases, tmp_path):
    tensors = dict(open_tensors(bases["sd1"][1]).tensors)
    unet = of_part(tensors, ldm.UNET)
    averaged = {f"model_ema.{name.removeprefix('model.').replace('.', '')}": unet[name] + 1 for name in unet}
    write_tensors(tmp_path / "both.ckpt", tensors | averaged)
    plain, ema = (open_base_tensors(tmp_path / "both.ckpt", ema) for ema in (False, True))
    assert torch.equal(ema.encoder["encoder.conv_in.weight"], plain.encoder["encoder.conv_in.weight"] + 1)
    assert not any(name.startswith("model_ema.") for name in ema.as_single_file().tensors)


def test_the_schedule_that_a_pruned_file_lacks_is_in_the_full_model(bases, tmp_path):
    tensors = of_part(dict(open_tensors(bases["sd1"][1]).tensors), ldm.UNET)
    tensors["cond_stage_model.transformer.text_model.final_layer_norm.weight"] = torch.ones(24)
    tensors["first_stage_model.quant_conv.weight"] = torch.ones(8, 8, 1, 1)
    write_tensors(tmp_path / "pruned.safetensors", tensors)
    whole = open_base_tensors(tmp_path / "pruned.safetensors").as_single_file()
    assert whole.tensors["alphas_cumprod"].shape == (1000,)
    assert whole.tensors["alphas_cumprod"][-1].item() == pytest.approx(0.0047, abs=1e-4)


def test_nothing_is_overwritten(bases, tmp_path, capsys):
    out = tmp_path / "there.safetensors"
    out.write_text("precious")
    assert run(["attach", str(bases["sd1"][1]), str(out)]) == 2
    assert "is there already" in capsys.readouterr().err
    assert out.read_text() == "precious"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["out.gguf"], ".gguf is no known suffix"),
        (["out"], "expected .safetensors, .ckpt or .pth"),
        (["out.ckpt", "--hint-channels", "0"], "--hint-channels 0"),
        (["out.ckpt", "--ema"], "leave out --ema"),
    ],
)
def test_a_request_that_cannot_be_done_is_exit_2_with_the_remedy(bases, tmp_path, monkeypatch, capsys, arguments, said):
    monkeypatch.chdir(tmp_path)
    assert run(["attach", str(bases["sd1"][0]), *arguments]) == 2
    assert said in capsys.readouterr().err.replace("\n", " ")
    assert list(tmp_path.iterdir()) == []


def test_a_base_for_inpainting_is_refused(bases, tmp_path):
    tensors = dict(open_tensors(bases["sd1"][1]).tensors)
    first = "model.diffusion_model.input_blocks.0.0.weight"
    tensors[first] = torch.zeros(32, 9, 3, 3)
    write_tensors(tmp_path / "inpainting.ckpt", tensors)
    with pytest.raises(UserError, match="takes 9 channels, expected 4"):
        open_base_tensors(tmp_path / "inpainting.ckpt")


def test_a_control_is_no_base(bases, tmp_path):
    assert run(["attach", str(bases["sd1"][1]), str(tmp_path / "control.safetensors")]) == 0
    with pytest.raises(UserError, match="ControlNet for SD 1.x; expected a base"):
        open_base_tensors(tmp_path / "control.safetensors")


def test_a_base_whose_encoder_lacks_a_weight_is_refused(bases, tmp_path):
    tensors = dict(open_tensors(bases["sd1"][1]).tensors)
    del tensors["model.diffusion_model.input_blocks.1.0.in_layers.0.bias"]
    write_tensors(tmp_path / "damaged.ckpt", tensors)
    with pytest.raises(UserError, match=r"1 missing: encoder\.down_blocks\.0\.resnets\.0\.norm1\.bias"):
        attach(open_base_tensors(tmp_path / "damaged.ckpt"))
