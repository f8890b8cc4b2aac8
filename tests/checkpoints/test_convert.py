"""`controlnet convert`: bases and controls, from any format to any other."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import ControlNetModel, StableDiffusionPipeline

import tiny
from checkpoints.made import METADATA, control_for, of_part, same, save_base
from controlnet.base import open_base
from controlnet.checkpoints import ldm
from controlnet.checkpoints.control_file import load_control
from controlnet.checkpoints.control_formats import open_control, to_names, write_control
from controlnet.checkpoints.tensor_file import open_tensors, write_tensors
from controlnet.cli.main import run


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder and the single file of the same."""
    return save_base(tmp_path_factory.mktemp("convert") / "base", "sd1")


@pytest.fixture
def control(tmp_path: Path) -> Path:
    write_control(tmp_path / "control.safetensors", control_for("sd1").state_dict(), METADATA, "controlnet")
    return tmp_path / "control.safetensors"


def convert(source: Path | str, out: Path, *options: str) -> int:
    return run(["convert", str(source), str(out), *options])


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("a.pth", [], "ldm"),
        ("a.safetensors", [], "controlnet"),
        ("a.safetensors", ["--to", "ldm"], "ldm"),
        ("a.ckpt", ["--to", "webui"], "webui"),
        ("folder", [], "diffusers"),
    ],
)
def test_a_control_gets_the_names_of_the_format_and_keeps_its_metadata(control, tmp_path, name, options, expected):
    out = tmp_path / "out" / name
    assert convert(control, out, *options) == 0
    weights = out / "diffusion_pytorch_model.safetensors" if expected == "diffusers" else out
    assert same(dict(open_tensors(weights).tensors), to_names(open_control(control).state, expected))
    assert open_control(out).metadata == METADATA


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_the_precision_is_what_is_asked_for(control, tmp_path, dtype):
    assert convert(control, tmp_path / "a.pth", "--dtype", dtype) == 0
    expected = {name: tensor.to(getattr(torch, dtype)) for name, tensor in open_control(control).state.items()}
    assert same(dict(open_control(tmp_path / "a.pth").state), expected)


def test_what_is_said_of_a_foreign_control_is_kept(control, tmp_path):
    write_tensors(tmp_path / "foreign.pth", to_names(open_control(control).state, "webui"))
    options = ["--condition", "normal", "--channel-order", "BGR", "--polarity", "none"]
    assert convert(tmp_path / "foreign.pth", tmp_path / "a.safetensors", *options) == 0
    metadata = open_control(tmp_path / "a.safetensors").metadata
    assert (metadata.condition, metadata.channel_order, metadata.polarity) == ("normal", "BGR", "none")


def test_the_base_tells_diffusers_the_heads_of_a_foreign_control(base, control, tmp_path, capsys):
    write_tensors(tmp_path / "foreign.pth", to_names(open_control(control).state, "webui"))
    assert convert(tmp_path / "foreign.pth", tmp_path / "folder") == 2
    assert "say --base" in capsys.readouterr().err.replace("\n", " ")
    for number, source in enumerate(base):
        assert convert(tmp_path / "foreign.pth", tmp_path / f"folder{number}", "--base", str(source)) == 0
        loaded = ControlNetModel.from_pretrained(tmp_path / f"folder{number}")
        assert loaded.config.attention_head_dim == tiny.unet("sd1").config.attention_head_dim


def test_a_run_and_a_packaged_control_are_converted_by_name(control, tmp_path):
    assert convert(control.parent, tmp_path / "run.pth") == 0
    assert convert("circle", tmp_path / "circle.pth") == 0
    assert open_control(tmp_path / "circle.pth").metadata.condition == "circle"


def test_a_converted_control_is_used_like_the_first(base, control, tmp_path):
    assert convert(control, tmp_path / "folder") == 0
    opened = open_base(base[0], "cpu", "float32")
    first, again = (load_control(path, opened)[0].state_dict() for path in (control, tmp_path / "folder"))
    assert same(first, again)


def test_a_base_goes_to_a_folder_and_back_bitwise(base, tmp_path):
    _, file = base
    assert convert(file, tmp_path / "folder") == 0
    assert convert(tmp_path / "folder", tmp_path / "back.safetensors") == 0
    assert same(dict(open_tensors(tmp_path / "back.safetensors").tensors), dict(open_tensors(file).tensors))
    StableDiffusionPipeline.from_pretrained(tmp_path / "folder", safety_checker=None)


def test_the_embedded_base_becomes_a_single_file_of_any_suffix(tmp_path):
    assert convert("embedded", tmp_path / "embedded.ckpt", "--dtype", "float16") == 0
    tensors = open_tensors(tmp_path / "embedded.ckpt").tensors
    assert "model.diffusion_model.input_blocks.0.0.weight" in tensors
    assert tensors["first_stage_model.quant_conv.weight"].dtype == torch.float16


def test_a_pickled_base_becomes_safetensors_without_a_tokenizer(base, tmp_path):
    write_tensors(tmp_path / "base.ckpt", open_tensors(base[1]).tensors)
    assert convert(tmp_path / "base.ckpt", tmp_path / "base.safetensors") == 0
    assert same(dict(open_tensors(tmp_path / "base.safetensors").tensors), dict(open_tensors(base[1]).tensors))


def test_of_a_file_with_both_the_part_must_be_said(base, control, tmp_path, capsys):
    full = tmp_path / "full.ckpt"
    tensors = dict(open_tensors(base[1]).tensors)
    write_tensors(full, {**tensors, **to_names(open_control(control).state, "ldm")})
    assert convert(full, tmp_path / "a.safetensors") == 2
    assert "--part base or --part control" in capsys.readouterr().err.replace("\n", " ")
    assert convert(full, tmp_path / "control.pth", "--part", "control") == 0
    assert convert(full, tmp_path / "base.ckpt", "--part", "base") == 0
    assert same(
        of_part(dict(open_tensors(full).tensors), ldm.CONTROL), dict(open_tensors(tmp_path / "control.pth").tensors)
    )
    assert same(tensors, dict(open_tensors(tmp_path / "base.ckpt").tensors))


@pytest.mark.parametrize(
    ("out", "options", "said"),
    [
        ("there.safetensors", [], "is there already"),
        ("a.gguf", [], ".gguf is no known suffix"),
        ("folder", ["--to", "ldm"], "--to ldm expects one of .safetensors"),
        ("a.pth", ["--to", "diffusers"], "--to diffusers expects no suffix"),
        ("a.pth", ["--ema"], "--ema: nothing that a control has"),
        ("a.pth", ["--part", "base"], "expected a base"),
    ],
)
def test_a_request_that_cannot_be_done_is_exit_2_with_the_remedy(control, tmp_path, capsys, out, options, said):
    (tmp_path / "there.safetensors").write_text("precious")
    before = sorted(tmp_path.iterdir())
    assert convert(control, tmp_path / out, *options) == 2
    assert said in capsys.readouterr().err.replace("\n", " ")
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("options", "said"),
    [(["--to", "webui"], "a format of controls"), (["--condition", "canny"], "--condition: nothing that a base has")],
)
def test_what_only_controls_have_is_not_asked_of_a_base(base, tmp_path, capsys, options, said):
    assert convert(base[1], tmp_path / "a.safetensors", *options) == 2
    assert said in capsys.readouterr().err.replace("\n", " ")


def test_what_is_neither_base_nor_control_is_refused(tmp_path, capsys):
    write_tensors(tmp_path / "vae.safetensors", {"encoder.mid.attn_1.q.weight": torch.zeros(8, 8, 1, 1)})
    assert convert(tmp_path / "vae.safetensors", tmp_path / "a.ckpt") == 2
    assert "VAE; expected a base or a ControlNet" in capsys.readouterr().err.replace("\n", " ")


def test_diffusers_reads_our_config_without_a_word_about_what_is_ours(control, tmp_path, caplog):
    assert convert(control, tmp_path / "folder") == 0
    assert json.loads((tmp_path / "folder" / "config.json").read_text())["_controlnet"]["condition"] == "canny"
    ControlNetModel.from_pretrained(tmp_path / "folder")
    assert "_controlnet" not in caplog.text
