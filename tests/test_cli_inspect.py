"""`controlnet inspect` as people see it: in a narrow and a wide terminal, as JSON, and its exit codes."""

import hashlib
import json

import pytest
import torch

import tiny
from controlnet.checkpoints import ldm
from controlnet.checkpoints.control_file import find_control
from controlnet.checkpoints.tensor_file import write_tensors
from controlnet.cli.main import run
from parity.reference import original_tensors


class ModelCheckpoint:
    """What a training leaves in its files."""


@pytest.fixture(params=[80, 120])
def columns(request, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(request.param))
    return request.param


def printed(capsys, *arguments: str) -> str:
    assert run(["inspect", *arguments]) == 0
    return capsys.readouterr().out


def test_the_packaged_control_is_told_by_name(columns, capsys):
    text = printed(capsys, "circle")
    assert "ControlNet for SD 1.x" in text
    assert "light on dark" in text
    assert "3,342,000" in text
    digest = hashlib.sha256(find_control("circle").read_bytes()).hexdigest()
    assert f"{digest}  control.safetensors" in text


def test_the_embedded_base_is_told_by_name(columns, capsys):
    text = printed(capsys, "embedded")
    assert "SD 1.x base" in text
    assert "unet/diffusion_pytorch_model.safetensors" in text
    assert "the noise (epsilon)" in text


def test_no_table_is_wider_than_the_terminal(columns, capsys, tmp_path):
    write_tensors(tmp_path / "a.safetensors", {"a.weight": torch.zeros(2)}, {"note": "word " * 100})
    text = printed(capsys, str(tmp_path / "a.safetensors"))
    assert "unknown model" in text
    assert (
        max(len(line) for line in text.splitlines()[1:] if "SHA" not in line and ".safetensors" not in line) <= columns
    )


def test_what_a_pickled_file_holds_beside_its_tensors_is_named_and_not_loaded(capsys, tmp_path):
    content = {"global_step": 5, "callbacks": {ModelCheckpoint: 1}, "state_dict": original_tensors("sd21")}
    torch.save(content, tmp_path / "base.ckpt")
    text = printed(capsys, str(tmp_path / "base.ckpt"), "--no-hash")
    assert "SD 2.x base with a ControlNet" in text
    assert "Objects of classes that were not loaded" in text
    assert f"{__name__}.ModelCheckpoint" in text
    assert "the file does not tell" in text
    assert "SHA-256" not in text


def test_json_is_one_object_on_stdout(capsys):
    told = json.loads(printed(capsys, "circle", "--json"))
    assert (told["kind"], told["family"], told["layout"]) == ("control", "sd1", "controlnet")
    assert told["said"]["condition"] == "circle"


def test_json_with_keys_is_one_object_too(capsys):
    told = json.loads(printed(capsys, "circle", "--json", "--keys"))
    assert told["keys"]["zero_conv_middle.bias"] == {"shape": [96], "dtype": "float16"}


def test_a_file_cannot_speak_to_the_terminal(capsys, tmp_path):
    note = "\x1b[2J\x1b]0;owned\x07"
    write_tensors(tmp_path / "a.safetensors", {"a.weight": torch.zeros(2)}, {"note": note, note: "note"})
    assert "\x1b" not in printed(capsys, str(tmp_path / "a.safetensors"))


def test_keys_are_all_tensors_with_shape_and_type(capsys, tmp_path):
    tensors = ldm.to_ldm(ldm.UNET, tiny.unet("sd1"))
    write_tensors(tmp_path / "a.safetensors", tensors, dtype=torch.float16)
    lines = printed(capsys, str(tmp_path / "a.safetensors"), "--keys").splitlines()
    assert "model.diffusion_model.out.2.bias (4,) float16" in lines
    assert sum(line.startswith("model.diffusion_model.") for line in lines) == len(tensors)


def test_a_model_of_the_table_that_is_not_here_is_exit_2_with_what_to_fetch(capsys):
    assert run(["inspect", "sd15"]) == 2
    assert "controlnet models fetch sd15" in capsys.readouterr().err.replace("\n", " ")


def test_what_is_not_there_is_exit_2(capsys, tmp_path):
    assert run(["inspect", str(tmp_path / "absent.safetensors")]) == 2
    assert "no such file" in capsys.readouterr().err.replace("\n", " ")
