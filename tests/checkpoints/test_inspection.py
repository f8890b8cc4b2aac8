"""What is told of files and folders, in every format, without loading them."""

import json
from pathlib import Path

import psutil
import pytest
import torch
from diffusers import ControlNetModel

import tiny
import tiny_folders
from controlnet.checkpoints import ldm
from controlnet.checkpoints.control_file import ControlMetadata, save_control
from controlnet.checkpoints.inspection import inspect
from controlnet.checkpoints.models import sha256
from controlnet.checkpoints.tensor_file import write_tensors
from controlnet.control import ControlNet
from controlnet.errors import UserError
from parity.reference import HERE, original_tensors


class ModelCheckpoint:
    """What a training leaves in its files; nobody else has its class."""

    def __init__(self) -> None:
        self.best = 0.1


def lightning(path: Path, **options: bool) -> Path:
    content = {
        "epoch": 3,
        "global_step": 840_000,
        "pytorch-lightning_version": "1.4.2",
        "callbacks": {ModelCheckpoint: {"best": ModelCheckpoint()}},
        "optimizer_states": [],
        "state_dict": original_tensors("sd15"),
    }
    torch.save(content, path, **options)
    return path


@pytest.mark.parametrize(("is_zip", "kind"), [(True, "pickle in a zip"), (False, "legacy pickle")])
def test_a_pickled_base_of_lightning_is_told_with_all_that_it_holds(tmp_path, is_zip, kind):
    path = lightning(tmp_path / "base.ckpt", _use_new_zipfile_serialization=is_zip)
    found = inspect(path, sha256)
    [file] = found.files
    assert (file.format, file.size, file.sha256) == (kind, path.stat().st_size, sha256(path))
    assert found.contents.title == "SD 1.x base with a ControlNet"
    assert {part: each.dtypes for part, each in found.parts.items()} == dict.fromkeys(
        ("unet", "control", "vae"), ("float32",)
    )
    assert found.others["global_step"] == "840000"
    assert found.others["callbacks"] == "a dict of 1"
    assert found.placeholders == {f"{__name__}.ModelCheckpoint": 2}
    assert found.problems == ()


def test_the_json_of_a_pickled_base_names_what_was_not_loaded(tmp_path):
    told = json.loads(inspect(lightning(tmp_path / "base.ckpt")).to_json())
    assert told["placeholders"] == {f"{__name__}.ModelCheckpoint": 2}


def test_tensors_parameters_and_types_of_a_part_are_counted(tmp_path):
    tensors = {
        "first_stage_model.decoder.conv_in.weight": torch.zeros(2, 3, dtype=torch.float16),
        "first_stage_model.decoder.conv_in.bias": torch.zeros(2),
        "betas": torch.zeros(10),
    }
    write_tensors(tmp_path / "a.safetensors", tensors)
    parts = inspect(tmp_path / "a.safetensors").parts
    assert (parts["vae"].tensors, parts["vae"].parameters, parts["vae"].dtypes) == (2, 8, ("float16", "float32"))
    assert parts["other"].parameters == 10


def test_the_header_of_a_safetensors_file_is_told(tmp_path):
    tensors = ldm.to_ldm(ldm.UNET, tiny.unet("sd2"))
    write_tensors(tmp_path / "a.safetensors", tensors, {"modelspec.prediction_type": "v", "author": "somebody"})
    found = inspect(tmp_path / "a.safetensors")
    assert found.contents.prediction == "v_prediction"
    assert found.metadata["author"] == "somebody"
    assert found.files[0].sha256 is None


@pytest.fixture
def run(tmp_path):
    """The folder of a run, with the control that it saved."""
    control = ControlNet.from_base(tiny.unet("sd1"))
    metadata = ControlMetadata("circle", "sd1", "epsilon", "0" * 64, (32, 64, 128, 128))
    save_control(tmp_path / "run" / "control.safetensors", control, metadata)
    return tmp_path / "run"


def test_the_folder_of_a_run_is_its_control_and_what_that_was_made_for(run):
    found = inspect(run)
    assert found.path == run / "control.safetensors"
    assert found.contents.title == "ControlNet for SD 1.x"
    assert (found.said["condition"], found.said["base_hash"]) == ("circle", "0" * 64)
    assert "controlnet" not in found.metadata


def test_a_control_of_which_a_tensor_is_missing_is_told_with_what_is_wrong(tmp_path):
    tensors = ldm.to_ldm(ldm.CONTROL, ControlNet.from_base(tiny.unet("sd1")))
    del tensors["control_model.zero_convs.3.0.bias"]
    write_tensors(tmp_path / "a.safetensors", tensors)
    [problem] = inspect(tmp_path / "a.safetensors").problems
    assert "1 missing: zero_convs.3.bias" in problem


def test_a_control_in_diffusers_layout_is_told_by_its_folder(tmp_path):
    ControlNetModel.from_unet(tiny.unet("sd2")).save_pretrained(tmp_path / "controlnet-sd21-canny-diffusers")
    found = inspect(tmp_path / "controlnet-sd21-canny-diffusers")
    assert (found.contents.kind, found.contents.layout, found.contents.family) == ("control", "diffusers", "sd2")
    assert found.said["condition"] == "canny"


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_base_in_diffusers_layout_is_told_by_its_folder(tmp_path, family):
    found = inspect(tiny_folders.save_tiny_base(tmp_path / "base", family, "v_prediction"), sha256)
    second = ("text_encoder_2",) if family == "sdxl" else ()
    assert (found.contents.kind, found.contents.family) == ("base", family)
    assert found.contents.parts == ("text_encoder", *second, "unet", "vae")
    assert found.contents.prediction == "v_prediction"
    assert [file.sha256 for file in found.files] == [sha256(file.path) for file in found.files]
    assert found.problems == ()


def test_a_base_that_lacks_a_part_is_told_with_what_is_wrong(tmp_path):
    folder = tiny_folders.save_tiny_base(tmp_path / "base")
    (folder / "vae" / "config.json").unlink()
    [problem] = inspect(folder).problems
    assert "vae: no config.json" in problem


def test_a_folder_of_something_else_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"a folder without model_index\.json"):
        inspect(tmp_path)


def test_the_json_says_all_but_the_keys(run):
    told = json.loads(inspect(run, sha256).to_json())
    assert (told["kind"], told["family"], told["prediction"]) == ("control", "sd1", "epsilon")
    assert told["parts"]["control"]["dtypes"] == ["float32"]
    assert told["files"][0]["sha256"] == sha256(run / "control.safetensors")
    assert "keys" not in told


def test_a_full_size_file_is_told_without_being_read(tmp_path):
    """5 GB of holes: had they been read, they would be in memory."""
    header, size = {}, 0
    for line in (HERE / "sd15.keys.tsv").read_text().splitlines():
        name, shape = line.split("\t")
        sizes = list(map(int, shape.split(",")))
        begin, size = size, size + 4 * torch.Size(sizes).numel()
        header[name] = {"dtype": "F32", "shape": sizes, "data_offsets": [begin, size]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path = tmp_path / "full.safetensors"
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + size)
    before = psutil.Process().memory_info().rss
    found = inspect(path)
    assert found.contents.title == "SD 1.x base with a ControlNet"
    millions = [found.parts[part].parameters / 1e6 for part in ("unet", "control")]
    assert millions == pytest.approx([859.52, 361.28], abs=0.005)
    assert psutil.Process().memory_info().rss - before < 100 * 2**20
