"""Safety: a random tiny checker, made on the spot, asked as diffusers asks it; and what is done to what it finds."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

import tiny_folders
from controlnet.base import open_base
from controlnet.cli.main import run
from controlnet.devices import fastest_dtype
from controlnet.errors import UserError
from controlnet.generation.pipeline import generate
from controlnet.generation.safety import find_checker, hidden, open_checker, prepared

PICTURES = np.random.default_rng(0).integers(0, 256, (6, 80, 64, 3), np.uint8)
PICTURES[3:] //= 4


def save_checker(folder: Path, threshold: float) -> StableDiffusionSafetyChecker:
    """A checker that finds unsafe what is nearer than `threshold` (cosine) to one of its 17 random concepts."""
    torch.manual_seed(0)
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2}
    vision |= {"image_size": 32, "patch_size": 8, "projection_dim": 8}
    network = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, projection_dim=8)).eval()
    with torch.no_grad():
        network.concept_embeds.copy_(torch.randn(17, 8))
        network.special_care_embeds.copy_(torch.randn(3, 8))
        network.concept_embeds_weights.fill_(threshold)
        network.special_care_embeds_weights.fill_(2)
    network.save_pretrained(folder / "safety_checker")
    sizes = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    CLIPImageProcessorPil(**sizes).save_pretrained(folder / "feature_extractor")
    return network


def test_pictures_are_judged_as_diffusers_judges_them(tmp_path: Path):
    for threshold in (0.2, 0.4, 0.6, 0.8):
        network = save_checker(tmp_path, threshold)
        processor = CLIPImageProcessorPil.from_pretrained(tmp_path / "feature_extractor")
        seen = processor([Image.fromarray(rgb) for rgb in PICTURES], return_tensors="pt").pixel_values
        checker = open_checker(tmp_path, torch.device("cpu"))
        ours = torch.stack([prepared(rgb, checker.preparation) for rgb in PICTURES])
        assert (ours - seen).abs().max() < 1e-5
        assert checker.finds_unsafe(PICTURES) == network(seen, [np.zeros(1)] * len(PICTURES))[1]


def test_the_threshold_decides(tmp_path: Path):
    save_checker(tmp_path, -1.0)
    assert all(open_checker(tmp_path, torch.device("cpu")).finds_unsafe(PICTURES))
    save_checker(tmp_path, 1.0)
    assert not any(open_checker(tmp_path, torch.device("cpu")).finds_unsafe(PICTURES))


def test_a_checker_that_transformers_4_saved_is_read_too(tmp_path: Path):
    save_checker(tmp_path, 0.4)
    before = open_checker(tmp_path, torch.device("cpu"))
    path = tmp_path / "safety_checker" / "model.safetensors"
    deeper = {
        name.replace("vision_model.", "vision_model.vision_model.", 1): it
        for name, it in load_file(path).items()
        if "vision_model.vision_model." not in name
    }
    deeper["vision_model.vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    save_file(deeper, path)
    after = open_checker(tmp_path, torch.device("cpu"))
    for name, tensor in before.network.state_dict().items():
        assert torch.equal(after.network.state_dict()[name], tensor)


def test_blur_leaves_no_detail_and_block_leaves_nothing():
    unsafe = [True, False] * 3
    for mode in ("blur", "block"):
        shown = hidden(PICTURES, unsafe, mode)
        assert np.array_equal(shown[1::2], PICTURES[1::2])
        detail = np.abs(np.diff(shown[::2].astype(int), axis=1)).mean()
        assert detail < 0.02 * np.abs(np.diff(PICTURES[::2].astype(int), axis=1)).mean()
        assert (shown[0].max() == 0) == (mode == "block")
    assert np.array_equal(hidden(PICTURES, unsafe, "flag"), PICTURES)


def test_half_a_checker_is_an_error_and_none_is_none(tmp_path: Path):
    assert find_checker("embedded", None) is None
    save_checker(tmp_path, 0.5)
    (tmp_path / "feature_extractor" / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match="no feature_extractor"):
        find_checker("embedded", str(tmp_path))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base whose checker finds everything unsafe."""
    folder = tiny_folders.save_tiny_base(tmp_path_factory.mktemp("base"))
    save_checker(folder, -1.0)
    return folder


@pytest.mark.parametrize("mode", ["off", "flag", "blur", "block"])
def test_the_command_does_as_it_is_told_and_says_so(
    base: Path, tmp_path: Path, mode: str, capsys: pytest.CaptureFixture[str]
):
    options = ["--prompt", "red", "--steps", "1", "--width", "64", "--height", "64", "--device", "cpu"]
    assert run(["generate", "--base", str(base), *options, "--safety", mode, "--out", str(tmp_path)]) == 0
    told = " ".join(capsys.readouterr().err.split())
    with Image.open(tmp_path / "0.png") as picture:
        shown, settings = np.array(picture), json.loads(picture.text["controlnet"])
    opened = open_base(base, "cpu", fastest_dtype("auto", "cpu"))  # as the command does
    plain = generate(opened, "red", steps=1, size=(64, 64)).pixels_nhwc
    assert np.array_equal(shown, hidden(plain, [True], mode)[0])
    if mode == "off":
        assert "checker" not in told
        assert "safety" not in settings
    else:
        assert f"safety checker: {base}" in told
        assert f"found unsafe by the checker ({mode})" in told
        assert settings["safety"] == {"checker": str(base), "unsafe": True, "done": mode}


def test_flag_says_that_nothing_was_checked_where_there_is_no_checker(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    base = tiny_folders.save_tiny_base(tmp_path / "base")
    options = ["--prompt", "red", "--steps", "1", "--width", "64", "--height", "64", "--device", "cpu"]
    assert run(["generate", "--base", str(base), *options, "--safety", "flag", "--out", str(tmp_path / "out")]) == 0
    assert "the pictures are not checked" in " ".join(capsys.readouterr().err.split())
    with Image.open(tmp_path / "out" / "0.png") as picture:
        assert json.loads(picture.text["controlnet"])["safety"] == {"checker": "none"}
    for mode in ("blur", "block"):
        assert run(["generate", "--base", str(base), *options, "--safety", mode, "--out", str(tmp_path / mode)]) == 2
        assert "no safety checker" in capsys.readouterr().err
        assert not (tmp_path / mode).exists()


def test_the_checker_of_a_base_on_the_hub_is_fetched_when_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The hub's own library downloads; here it copies what it is asked for from a folder that is the hub."""
    hub, cache = tiny_folders.save_tiny_base(tmp_path / "hub"), tmp_path / "cache"
    save_checker(hub, 0.4)

    def download(repository: str, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
        assert repository == "someone/base"
        for path in hub.rglob("*"):
            name = path.relative_to(hub)
            if path.is_file() and any(name.match(pattern) for pattern in allow_patterns):
                (cache / name).parent.mkdir(parents=True, exist_ok=True)
                (cache / name).write_bytes(path.read_bytes())
        return str(cache)

    monkeypatch.setattr("controlnet.checkpoints.folder.snapshot_download", download)
    open_base("someone/base", "cpu")
    assert not (cache / "safety_checker").exists()
    assert find_checker("someone/base", None) == cache
    assert len(open_checker(cache, torch.device("cpu")).finds_unsafe(PICTURES)) == len(PICTURES)
    shutil.rmtree(hub / "safety_checker")
    shutil.rmtree(cache)
    assert find_checker("someone/base", None) is None
