"""Tensors that are written are what is read, in every format, whole or not at all."""

import zipfile
from pathlib import Path

import pytest
import torch

from controlnet.checkpoints.tensor_file import SUFFIXES, open_tensors, write_tensors
from controlnet.errors import UserError

BASE = torch.arange(24, dtype=torch.float32).reshape(4, 6)
STATE = {
    "weight": BASE,
    "transposed": BASE.t(),
    "row": BASE[1],
    "half": BASE.half(),
    "steps": torch.tensor(7),
    "parameter": torch.nn.Parameter(BASE[:2]),
    "empty": torch.empty(0, 3),
}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_is_written_is_read(suffix, tmp_path):
    write_tensors(tmp_path / f"model{suffix}", STATE)
    found = open_tensors(tmp_path / f"model{suffix}").tensors
    assert found.keys() == STATE.keys()
    for name, tensor in STATE.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor.detach())
        assert found[name].is_contiguous()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_precision_is_for_floating_tensors_only(suffix, tmp_path):
    write_tensors(tmp_path / f"model{suffix}", STATE, dtype=torch.bfloat16)
    found = open_tensors(tmp_path / f"model{suffix}").tensors
    assert {tensor.dtype for name, tensor in found.items() if name != "steps"} == {torch.bfloat16}
    assert (found["steps"].dtype, found["steps"].item()) == (torch.int64, 7)


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_a_file_that_was_read_is_written_again_over_itself(suffix, tmp_path):
    """Its tensors are views of the old file, which lives until they die."""
    path = tmp_path / f"model{suffix}"
    write_tensors(path, STATE)
    write_tensors(path, open_tensors(path).tensors)
    assert torch.equal(open_tensors(path).tensors["transposed"], BASE.t())


def test_metadata_comes_back_in_either_format(tmp_path):
    for suffix in (".safetensors", ".ckpt"):
        write_tensors(tmp_path / f"model{suffix}", STATE, {"controlnet": "{}"})
    assert open_tensors(tmp_path / "model.safetensors").metadata == {"controlnet": "{}"}
    assert open_tensors(tmp_path / "model.ckpt").others == {"controlnet": "{}"}


def test_a_pickled_file_is_what_torch_load_reads(tmp_path):
    write_tensors(tmp_path / "model.ckpt", STATE)
    theirs = torch.load(tmp_path / "model.ckpt", weights_only=True)
    assert theirs.keys() == {"state_dict"}
    assert all(torch.equal(theirs["state_dict"][name], tensor) for name, tensor in STATE.items())


def test_a_part_of_a_shared_memory_is_written_without_the_rest(tmp_path):
    write_tensors(tmp_path / "model.ckpt", {"row": torch.zeros(1000, 1000)[3]})
    with zipfile.ZipFile(tmp_path / "model.ckpt") as archive:
        assert sum(entry.file_size for entry in archive.infolist()) < 10_000


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_progress_ends_at_the_total(suffix, tmp_path):
    seen: list[tuple[int, int]] = []
    write_tensors(tmp_path / f"model{suffix}", STATE, progress=lambda done, total: seen.append((done, total)))
    total = sum(tensor.nbytes for tensor in STATE.values())
    assert seen == sorted(seen)
    assert seen[-1] == (total, total)


@pytest.mark.parametrize("name", ["model", "model.onnx", "model.SAFETENSORS"])
def test_another_suffix_is_a_user_error(name, tmp_path):
    with pytest.raises(UserError, match=r"use \.safetensors, \.ckpt, \.pth, \.pt, \.bin"):
        write_tensors(tmp_path / name, STATE)


def test_a_type_that_safetensors_lacks_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match=r"safetensors has no torch\.complex128; choose \.ckpt"):
        write_tensors(tmp_path / "model.safetensors", {"a": torch.ones(2, dtype=torch.complex128)})
    assert list(tmp_path.iterdir()) == []


def test_the_suffix_says_nothing_of_the_content(tmp_path: Path):
    write_tensors(tmp_path / "model.safetensors", STATE)
    (tmp_path / "model.safetensors").rename(tmp_path / "model.ckpt")
    assert open_tensors(tmp_path / "model.ckpt").tensors.keys() == STATE.keys()


def test_views_outlive_what_opened_them(tmp_path):
    write_tensors(tmp_path / "model.ckpt", STATE)
    tensor = open_tensors(tmp_path / "model.ckpt").tensors["weight"]
    (tmp_path / "model.ckpt").unlink()
    assert torch.equal(tensor, BASE)
