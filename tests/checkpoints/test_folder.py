"""Folders in diffusers layout: every way in which weights are kept there, and nothing but tensors out of any file."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor

import tiny
import tiny_folders
from controlnet.base import open_base
from controlnet.checkpoints.folder import load_base_folder, save_base_folder, weight_files
from controlnet.errors import UserError

FILES = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("bases")
    return {family: tiny_folders.save_tiny_base(home / family, family) for family in tiny.FAMILIES}


@pytest.fixture(scope="module")
def digest(folders: dict[str, Path]) -> str:
    """The hash of the SD 1.x base."""
    return open_base(folders["sd1"], device="cpu").hash()


@pytest.fixture
def folder(folders: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the SD 1.x folder, to be changed."""
    return Path(shutil.copytree(folders["sd1"], tmp_path / "base"))


def rewrite(folder: Path, change: Callable[[Path, dict[str, Tensor]], object]) -> None:
    """Take away the weights of all models and let `change` write them again: it gets the file's path without suffix."""
    for part, stem in FILES.items():
        path = folder / part / f"{stem}.safetensors"
        tensors = load_file(path)
        path.unlink()
        change(path.with_name("pytorch_model" if stem == "model" else stem), tensors)


def pickled(path: Path, tensors: dict[str, Tensor]) -> None:
    torch.save(tensors, path.with_suffix(".bin"))


def pickled_by_old_torch(path: Path, tensors: dict[str, Tensor]) -> None:
    torch.save(tensors, path.with_suffix(".bin"), _use_new_zipfile_serialization=False)


def pickled_in_shards(path: Path, tensors: dict[str, Tensor]) -> None:
    names = list(tensors)
    shards = {f"{path.name}-0000{n}-of-00003.bin": names[n - 1 :: 3] for n in (1, 2, 3)}
    for file, own in shards.items():
        torch.save({name: tensors[name] for name in own}, path.with_name(file))
    index = {"metadata": {}, "weight_map": {name: file for file, own in shards.items() for name in own}}
    path.with_name(f"{path.name}.bin.index.json").write_text(json.dumps(index))


def safetensors_in_shards(path: Path, tensors: dict[str, Tensor]) -> None:
    stem = path.name.replace("pytorch_model", "model") if path.name == "pytorch_model" else path.name
    halves = list(tensors)[::2], list(tensors)[1::2]
    files = [f"{stem}-0000{n}-of-00002.safetensors" for n in (1, 2)]
    for file, own in zip(files, halves, strict=True):
        save_file({name: tensors[name] for name in own}, path.with_name(file), {"format": "pt"})
    index = {"weight_map": {name: file for file, own in zip(files, halves, strict=True) for name in own}}
    path.with_name(f"{stem}.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    "change", [pickled, pickled_by_old_torch, pickled_in_shards, safetensors_in_shards], ids=lambda it: it.__name__
)
def test_weights_in_every_container_are_the_same(folder: Path, digest: str, change: Callable[..., object]):
    rewrite(folder, change)
    assert open_base(folder, device="cpu").hash() == digest


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_a_folder_with_half_precision_files_only_opens(folder: Path, digest: str, suffix: str):
    if suffix == "bin":
        rewrite(folder, pickled)
    for part in FILES:
        [path] = (folder / part).glob(f"*.{suffix}")
        path.rename(path.with_name(f"{path.stem}.fp16.{suffix}"))
    assert open_base(folder, device="cpu").hash() == digest


def test_full_precision_is_taken_before_half(folder: Path):
    unet = folder / "unet"
    (unet / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"")
    (unet / "diffusion_pytorch_model.bin").write_bytes(b"")
    assert [path.name for path in weight_files(unet)] == ["diffusion_pytorch_model.safetensors"]
    (unet / "diffusion_pytorch_model.safetensors").unlink()
    assert [path.name for path in weight_files(unet)] == ["diffusion_pytorch_model.bin"]


def test_names_of_earlier_versions_of_the_libraries_are_read(folder: Path, digest: str):
    earlier = {"to_q.": "query.", "to_k.": "key.", "to_v.": "value.", "to_out.0.": "proj_attn."}

    def older(path: Path, tensors: dict[str, Tensor]) -> None:
        if path.parent.name == "vae":
            for today, before in earlier.items():
                tensors = {
                    name.replace(f"attentions.0.{today}", f"attentions.0.{before}"): x for name, x in tensors.items()
                }
            assert "decoder.mid_block.attentions.0.proj_attn.bias" in tensors
        if path.parent.name == "text_encoder":
            tensors = {f"text_model.{name}": tensor for name, tensor in tensors.items()}
            tensors["text_model.embeddings.position_ids"] = torch.arange(77)[None]
            tensors["text_projection.weight"] = torch.zeros(16, 24)  # of a whole CLIP, not heard
        torch.save(tensors, path.with_suffix(".bin"))

    rewrite(folder, older)
    assert open_base(folder, device="cpu").hash() == digest


def test_a_tensor_that_the_model_does_not_have_is_named(folder: Path):
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    save_file(load_file(path) | {"adapter.weight": torch.zeros(1)}, path)
    with pytest.raises(UserError, match="unet does not fit(.|\n)*1 unexpected: adapter.weight"):
        open_base(folder)


class Payload:
    """Whoever unpickles this makes the folder `marker`."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("part", FILES)
@pytest.mark.parametrize("place", ["a tensor", "beside the tensors"])
def test_nothing_in_pickled_weights_is_run(folder: Path, tmp_path: Path, digest: str, part: str, place: str):
    marker = tmp_path / "marker"

    def hostile(path: Path, tensors: dict[str, Tensor]) -> None:
        if path.parent.name != part:
            content: dict[str, object] = dict(tensors)
        elif place == "a tensor":
            content = {**tensors, next(iter(tensors)): Payload(marker)}
        else:
            content = {"state_dict": tensors, "hyper_parameters": Payload(marker)}
        torch.save(content, path.with_suffix(".bin"))

    rewrite(folder, hostile)
    if place == "a tensor":
        with pytest.raises(UserError):
            open_base(folder, device="cpu")
    else:
        assert open_base(folder, device="cpu").hash() == digest
    assert not marker.exists()


def test_an_index_that_points_out_of_its_folder_is_refused(folder: Path):
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    path.rename(folder / "weights.safetensors")
    index = {"weight_map": {"conv_in.weight": "../weights.safetensors"}}
    (folder / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"names files outside its own folder \(\.\./weights.safetensors\)"):
        open_base(folder)


def test_a_shard_that_is_missing_is_named(folder: Path):
    rewrite(folder, pickled_in_shards)
    (folder / "unet" / "diffusion_pytorch_model-00002-of-00003.bin").unlink()
    with pytest.raises(UserError, match="diffusion_pytorch_model-00002-of-00003.bin: no such file"):
        open_base(folder)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("unet/config.json", "[]", "no object"),
        ("unet/config.json", '{"block_out_channels": "wide"}', "unet: cannot be read as UNet2DConditionModel"),
        ("text_encoder/config.json", '{"num_attention_heads": 0}', "text_encoder: cannot be read as CLIPTextModel"),
        ("scheduler/scheduler_config.json", '{"num_train_timesteps": 1e15}', "has 1000000000000000.0 timesteps"),
        ("scheduler/scheduler_config.json", '{"beta_schedule": "steep"}', "noise schedule: cannot be read"),
    ],
)
def test_a_broken_configuration_is_named(folder: Path, name: str, content: str, message: str):
    (folder / name).write_text(content)
    with pytest.raises(UserError, match=message):
        open_base(folder)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_saved_base_is_what_diffusers_reads_and_would_save(
    folders: dict[str, Path], tmp_path: Path, family: tiny.Family
):
    saved = tmp_path / "saved"
    save_base_folder(load_base_folder(folders[family], None), saved)
    written = {str(path.relative_to(saved)) for path in saved.rglob("*.*")}
    original = {str(path.relative_to(folders[family])) for path in folders[family].rglob("*.*")}
    assert written == {name for name in original if not name.startswith("words")}
    for name in sorted(written):
        assert same_content(saved / name, folders[family] / name), name
    pipe = DiffusionPipeline.from_pretrained(saved)
    assert type(pipe).__name__.startswith("StableDiffusion")


def same_content(one: Path, other: Path) -> bool:
    if one.suffix == ".safetensors":
        mine, theirs = load_file(one), load_file(other)
        return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
    mine, theirs = (json.loads(path.read_text()) for path in (one, other))
    # how they were loaded and, of SDXL, what the tiny ones have otherwise than the real ones
    told = ("_name_or_path", "is_local", "local_files_only", "force_zeros_for_empty_prompt", "add_watermarker")
    return {k: v for k, v in mine.items() if k not in told} == {k: v for k, v in theirs.items() if k not in told}


def test_a_saved_base_is_in_the_precision_asked_for(folders: dict[str, Path], tmp_path: Path):
    parts = load_base_folder(folders["sd1"], None)
    save_base_folder(parts, tmp_path / "half", torch.float16)
    half = load_base_folder(tmp_path / "half", None)
    assert {half.unet.dtype, half.vae.dtype, half.text_encoders[0].dtype} == {torch.float16}
    assert json.loads((tmp_path / "half" / "text_encoder" / "config.json").read_text())["dtype"] == "float16"
    assert parts.unet.dtype == torch.float32
