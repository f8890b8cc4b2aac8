"""Twelve files that people give by mistake: `inspect` and `generate` name the cause and the remedy, and exit with 2."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

import tiny
from controlnet.checkpoints import ldm
from controlnet.checkpoints.base_file import base_metadata, base_to_ldm
from controlnet.checkpoints.tensor_file import write_tensors
from controlnet.cli.main import run
from controlnet.control import ControlNet
from tiny_folders import make_true_parts

SOME = {f"model.diffusion_model.out.{place}.weight": torch.zeros(4, 320, 3, 3) for place in (0, 2)}


def saved(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def lfs_pointer(folder: Path) -> Path:
    text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 4265146304\n"
    return saved(folder / "v1-5-pruned.ckpt", text.encode())


def web_page(folder: Path) -> Path:
    return saved(folder / "model.safetensors", b"<!DOCTYPE html>\n<html><head><title>Log in</title></head></html>")


def empty(folder: Path) -> Path:
    return saved(folder / "model.safetensors", b"")


def cut(path: Path) -> Path:
    return saved(path, path.read_bytes()[:-1000])


def cut_zip(folder: Path) -> Path:
    torch.save({"state_dict": SOME}, folder / "model.ckpt")
    return cut(folder / "model.ckpt")


def cut_legacy(folder: Path) -> Path:
    torch.save(SOME, folder / "model.ckpt", _use_new_zipfile_serialization=False)
    return cut(folder / "model.ckpt")


def cut_safetensors(folder: Path) -> Path:
    write_tensors(folder / "model.safetensors", SOME)
    return cut(folder / "model.safetensors")


def seven_zip(folder: Path) -> Path:
    return saved(folder / "model.ckpt", b"7z\xbc\xaf\x27\x1c\x00\x04" + bytes(100))


def tar(folder: Path) -> Path:
    with tarfile.open(folder / "model.pth", "w") as archive:
        member = tarfile.TarInfo("weights.bin")
        member.size = 5
        archive.addfile(member, io.BytesIO(b"12345"))
    return folder / "model.pth"


def gguf(folder: Path) -> Path:
    return saved(folder / "model.safetensors", b"GGUF\x03\x00\x00\x00" + bytes(100))


def lora(folder: Path) -> Path:
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    tensors = {f"{name}.lora_down.weight": torch.zeros(4, 768), f"{name}.lora_up.weight": torch.zeros(320, 4)}
    write_tensors(folder / "style.safetensors", tensors)
    return folder / "style.safetensors"


def vae(folder: Path) -> Path:
    write_tensors(folder / "vae.ckpt", {"first_stage_model.encoder.conv_in.weight": torch.zeros(32, 3, 3, 3)})
    return folder / "vae.ckpt"


# what is given by mistake -> how it is made, a word of the cause, a word of the remedy
WRONG: dict[str, tuple[Callable[[Path], Path], str, str]] = {
    "LFS pointer": (lfs_pointer, "Git LFS pointer", "git lfs pull"),
    "HTML": (web_page, "web page", "download"),
    "empty": (empty, "empty file", "download or copy"),
    "cut zip": (cut_zip, "cut off", "download or copy"),
    "cut legacy pickle": (cut_legacy, "cut off", "download or copy"),
    "cut safetensors": (cut_safetensors, "cut off", "download or copy"),
    "7z": (seven_zip, "7z archive", "unpack it"),
    "tar": (tar, "tar archive", "unpack it"),
    "GGUF": (gguf, "GGUF", "get the .safetensors"),
}
NO_BASE: dict[str, tuple[Callable[[Path], Path], str, str]] = {
    "LoRA": (lora, "LoRA for SD 1.x", "give the base that it was made for"),
    "VAE": (vae, "VAE", "give the whole base"),
}
COMMANDS = {
    "inspect": ["inspect", "{}"],
    "base": ["generate", "--prompt", "a circle", "--out", "pictures", "--base", "{}"],
    "control": ["generate", "--prompt", "a circle", "--out", "pictures", "--control", "{}", "--hint", "hint.png"],
}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (128, 128)).save("hint.png")
    return tmp_path


def complaint(command: str, path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What is said about the file, with exit code 2 and no traceback; an exception would come through `run`."""
    code = run([word.format(path) for word in COMMANDS[command]])
    said = " ".join(capsys.readouterr().err.split())
    assert (code, "Traceback" in said) == (2, False), said
    assert str(path) in said
    return said


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_model_is_refused_with_the_cause_and_the_remedy(here, name, command, capsys):
    make, cause, remedy = WRONG[name]
    said = complaint(command, make(here), capsys)
    assert cause in said
    assert remedy in said


@pytest.mark.parametrize("command", ["base", "control"])
@pytest.mark.parametrize("name", NO_BASE)
def test_a_model_of_another_kind_is_refused_with_what_it_is_and_what_to_take(here, name, command, capsys):
    make, cause, remedy = NO_BASE[name]
    said = complaint(command, make(here), capsys)
    assert cause in said
    assert remedy in said
    assert {"base": "expected a base", "control": "expected a ControlNet"}[command] in said


@pytest.mark.parametrize("name", NO_BASE)
def test_a_model_of_another_kind_is_inspected_and_told(here, name, capsys):
    make, cause, remedy = NO_BASE[name]
    assert run(["inspect", str(make(here))]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert cause in said
    assert remedy in said


def test_a_control_for_sdxl_on_an_sd_1_base_is_refused_with_both_families(here, capsys):
    control = ControlNet.from_base(tiny.unet("sdxl"))
    write_tensors(here / "control.safetensors", ldm.to_ldm(ldm.CONTROL, control))
    said = complaint("control", here / "control.safetensors", capsys)
    assert "base family: the control was made for sdxl, the base has sd1" in said
    assert "choose the base it was made for, or another control" in said


def test_an_sdxl_base_under_a_control_for_sd_1_is_refused_with_both_families(here, capsys):
    parts = make_true_parts(here / "words", "sdxl")
    write_tensors(here / "sdxl.safetensors", base_to_ldm(parts), base_metadata(parts))
    arguments = ["generate", "--prompt", "a", "--out", "pictures", "--base", str(here / "sdxl.safetensors")]
    assert run([*arguments, "--control", "circle", "--hint", "hint.png"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "base family: the control was made for sd1, the base has sdxl" in said
