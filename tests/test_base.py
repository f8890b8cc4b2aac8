"""The base: what diffusers' own pipelines make of the same folders, and what people get wrong about folders."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, DiffusionPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor

import tiny
import tiny_folders
from controlnet.base import Base, open_base, tokenize
from controlnet.errors import UserError
from parity.reference import relative_error

LONG = "a red bee " * 30  # more than 75 tokens


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One folder for each family; not to be changed."""
    home = tmp_path_factory.mktemp("bases")
    return {family: tiny_folders.save_tiny_base(home / family, family) for family in tiny.FAMILIES}


@pytest.fixture(scope="module")
def bases(folders: dict[str, Path]) -> dict[str, Base]:
    return {family: open_base(folder, device="cpu") for family, folder in folders.items()}


@pytest.fixture
def folder(folders: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the SD 1.x folder, to be spoiled."""
    return Path(shutil.copytree(folders["sd1"], tmp_path / "base"))


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_folder_opens_locked_as_its_own_family(bases: dict[str, Base], family: str):
    base = bases[family]
    parts = [base.unet, base.vae, *base.text_encoders]
    assert base.family == family
    assert base.resolution == 128
    assert not any(part.training for part in parts)
    assert not any(parameter.requires_grad for part in parts for parameter in part.parameters())


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_contexts_equal_those_of_diffusers(folders: dict[str, Path], bases: dict[str, Base], family: str):
    pipe = pipeline(folders[family])
    prompts = ["a red bee", ""]
    heard = bases[family].encode_prompts(prompts)
    expected = pipe.encode_prompt(prompts, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False)
    torch.testing.assert_close(heard.context_btd, expected[0], rtol=0, atol=1e-5)
    if family == "sdxl":
        assert heard.added is not None
        torch.testing.assert_close(heard.added["text_embeds"], expected[2], rtol=0, atol=1e-5)


def test_sdxl_hears_of_the_size_of_the_picture(bases: dict[str, Base]):
    heard = bases["sdxl"].encode_prompts(["bee"], size_hw=(64, 96))
    assert heard.added is not None
    assert heard.added["time_ids"].tolist() == [[64, 96, 0, 0, 64, 96]]


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_long_prompt_is_heard_in_chunks_each_encoded_apart(bases: dict[str, Base], family: str):
    base = bases[family]
    heard = base.encode_prompts([LONG, "bee"])
    tokens = base.tokenizers[0](LONG, add_special_tokens=False, verbose=False).input_ids
    assert 75 < len(tokens) <= 150
    assert heard.context_btd.shape[1] == 2 * 77
    chunks = [base.tokenizers[0].decode(part) for part in (tokens[:75], tokens[75:])]
    apart = base.encode_prompts([*chunks, "bee", ""]).context_btd
    torch.testing.assert_close(heard.context_btd[0], apart[:2].flatten(0, 1), rtol=0, atol=1e-5)
    torch.testing.assert_close(heard.context_btd[1], apart[2:].flatten(0, 1), rtol=0, atol=1e-5)
    if family == "sdxl":
        alone = base.encode_prompts([chunks[0], "bee"])
        assert heard.added is not None
        assert alone.added is not None
        torch.testing.assert_close(heard.added["text_embeds"], alone.added["text_embeds"], rtol=0, atol=1e-5)


def test_seventy_five_tokens_are_one_chunk_and_seventy_six_are_two(bases: dict[str, Base]):
    tokenizer = bases["sd1"].tokenizers[0]
    assert tokenize(tokenizer, ["b " * 75]).shape == (1, 1, 77)
    assert tokenize(tokenizer, ["b " * 76, "b"]).shape == (2, 2, 77)


def test_clip_skip_two_is_the_normed_output_of_the_layer_before_the_last(bases: dict[str, Base]):
    base = bases["sd1"]
    encoder = base.text_encoders[0]
    hidden = encoder(tokenize(base.tokenizers[0], ["bee"])[0], output_hidden_states=True).hidden_states
    expected = encoder.final_layer_norm(hidden[2])  # of 3 layers, the second's; hidden[0] is the embedding
    torch.testing.assert_close(base.encode_prompts(["bee"], clip_skip=2).context_btd, expected)
    assert not torch.equal(expected, base.encode_prompts(["bee"]).context_btd)


def test_clip_skip_two_of_sdxl_is_one_before_its_penultimate_layer(bases: dict[str, Base], folders: dict[str, Path]):
    expected = pipeline(folders["sdxl"]).encode_prompt(
        "bee", device="cpu", do_classifier_free_guidance=False, clip_skip=1
    )
    torch.testing.assert_close(bases["sdxl"].encode_prompts(["bee"], clip_skip=2).context_btd, expected[0])


def test_more_layers_skipped_than_there_are_is_an_error(bases: dict[str, Base]):
    with pytest.raises(UserError, match="clip skip 4; expected 1 to 3"):
        bases["sd1"].encode_prompts(["bee"], clip_skip=4)


def test_latents_and_pictures_are_those_of_the_vae_in_its_own_scaling(bases: dict[str, Base]):
    base = bases["sd1"]
    pixels_bchw = torch.rand(2, 3, 128, 128).to(memory_format=torch.channels_last) * 2 - 1  # others round otherwise
    mean, deviation = base.encode_moments(pixels_bchw)
    posterior = base.vae.encode(pixels_bchw).latent_dist
    torch.testing.assert_close(mean, posterior.mean * 0.3)
    torch.testing.assert_close(deviation, posterior.std * 0.3)
    torch.testing.assert_close(base.decode_latents(mean), base.vae.decode(posterior.mean).sample)
    first, again = (base.encode_pictures(pixels_bchw, torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(first, again)
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(7))
    torch.testing.assert_close(first, mean + deviation * noise)


def test_a_vae_that_shifts_its_latents_is_shifted_back(folder: Path):
    change_json(folder / "vae" / "config.json", shift_factor=0.1)
    base = open_base(folder, device="cpu")
    pixels_bchw = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mean, _ = base.encode_moments(pixels_bchw)
    own = base.vae.encode(pixels_bchw).latent_dist.mean
    torch.testing.assert_close(mean, (own - 0.1) * 0.3)
    assert relative_error(base.decode_latents(mean), base.vae.decode(own).sample) < 1e-5


def test_the_schedule_mixes_noise_as_diffusers_does(bases: dict[str, Base]):
    base = bases["sd1"]
    latent, noise, timestep = torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8), torch.tensor([0, 500, 999])
    scheduler = DDPMScheduler.from_config(base.scheduler_config)
    torch.testing.assert_close(
        base.schedule.add_noise(latent, noise, timestep), scheduler.add_noise(latent, noise, timestep)
    )
    torch.testing.assert_close(
        base.schedule.velocity(latent, noise, timestep), scheduler.get_velocity(latent, noise, timestep)
    )


def test_half_precision_keeps_latents_and_pixels_in_float32(folders: dict[str, Path]):
    base = open_base(folders["sd1"], device="cpu", dtype="bfloat16")
    mean, deviation = base.encode_moments(torch.rand(1, 3, 128, 128))
    dtypes: list[Tensor] = [mean, deviation, base.decode_latents(mean)]
    assert {tensor.dtype for tensor in dtypes} == {torch.float32}
    assert base.encode_prompts(["bee"]).context_btd.dtype == base.dtype == torch.bfloat16


def test_the_hash_is_of_the_weights_and_not_of_their_precision(folders: dict[str, Path], bases: dict[str, Base]):
    assert open_base(folders["sd1"], device="cpu", dtype="bfloat16").hash() == bases["sd1"].hash()
    other = open_base(folders["sd1"], device="cpu")
    next(other.vae.parameters()).add_(1)
    assert other.hash() != bases["sd1"].hash()


def test_all_missing_parts_are_named_at_once(folder: Path):
    (folder / "vae" / "diffusion_pytorch_model.safetensors").rename(folder / "vae" / "weights.h5")
    shutil.rmtree(folder / "tokenizer")
    with pytest.raises(UserError) as caught:
        open_base(folder)
    message = str(caught.value)
    assert "vae: no *.safetensors or *.bin, found config.json, weights.h5" in message
    assert "tokenizer: no tokenizer_config.json, found nothing" in message
    assert "unet:" not in message


def test_a_truncated_file_is_named(folder: Path):
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"unet/diffusion_pytorch_model.safetensors: .*cut off"):
        open_base(folder)


@pytest.mark.parametrize("part", ["unet/diffusion_pytorch_model", "text_encoder/model"])
def test_a_missing_weight_is_counted_and_named(folder: Path, part: str):
    path = folder / f"{part}.safetensors"
    weights = load_file(path)
    name = next(iter(weights))
    del weights[name]
    save_file(weights, path, {"format": "pt"})
    with pytest.raises(UserError, match=f"{part.split('/')[0]} does not fit(.|\n)*1 missing: {name}"):
        open_base(folder)


def test_a_broken_tokenizer_is_named(folder: Path):
    (folder / "tokenizer" / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="tokenizer: cannot be read as CLIPTokenizer"):
        open_base(folder)


def test_a_broken_index_is_named(folder: Path):
    (folder / "model_index.json").write_text("{")
    with pytest.raises(UserError, match=r"model_index.json: no valid JSON"):
        open_base(folder)


def test_a_base_that_predicts_something_else_is_refused(folder: Path):
    change_json(folder / "scheduler" / "scheduler_config.json", prediction_type="sample")
    with pytest.raises(UserError, match="predicts 'sample'; expected one of: epsilon, v_prediction"):
        open_base(folder)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nonsense", "neither a file or folder that exists nor a hub id"),
        ("./no/such/folder", "neither a file or folder that exists nor a hub id"),
        ("no/such/file.ckpt", "neither a file or folder that exists nor a hub id"),
        (str(Path(__file__).parent), "no model_index.json, found .*conftest.py"),
        ("sd15", "stable-diffusion-v1-5: not in the cache .*hf download"),
        ("someone/some-base", "not in the cache .*HF_HUB_CACHE.*hf download someone/some-base"),
    ],
)
def test_a_source_that_cannot_be_opened_says_what_to_put_where(source: str, message: str):
    with pytest.raises(UserError, match=message):
        open_base(source)


def test_averaged_weights_are_asked_of_files_only(folders: dict[str, Path]):
    with pytest.raises(UserError, match="a folder holds one set of weights.*leave out --ema"):
        open_base(folders["sd1"], ema=True)


def test_a_prediction_that_the_user_says_holds_over_the_folders(folders: dict[str, Path]):
    assert open_base(folders["sd2"], device="cpu").schedule.prediction_type == "epsilon"
    said = open_base(folders["sd2"], device="cpu", prediction="v_prediction")
    assert said.schedule.prediction_type == "v_prediction"


def test_a_base_in_the_hub_cache_opens_offline_by_its_id(
    folders: dict[str, Path], bases: dict[str, Base], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    repository = tmp_path / "models--someone--some-base"
    shutil.copytree(folders["sd1"], repository / "snapshots" / "0123abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert open_base("someone/some-base", device="cpu").hash() == bases["sd1"].hash()


def test_opening_prints_nothing(folders: dict[str, Path], capfd: pytest.CaptureFixture[str]):
    open_base(folders["sdxl"], device="cpu").encode_prompts([LONG])
    assert capfd.readouterr() == ("", "")


def pipeline(folder: Path) -> Any:
    pipe = DiffusionPipeline.from_pretrained(folder, use_safetensors=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def change_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
