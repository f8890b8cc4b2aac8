"""Single files of bases: bit for bit what folders hold, in both directions; and what people get wrong about them."""

import re
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint
from torch import Tensor
from transformers import CLIPTextModel

import tiny
import tiny_folders
from checkpoints.test_ldm import FULL_SIZE, originals_shapes
from controlnet.base import open_base
from controlnet.checkpoints import base_file
from controlnet.checkpoints.architecture import SCHEDULER, scheduler_config
from controlnet.checkpoints.base_file import PASSED_OVER, SCHEDULE, base_metadata, base_to_ldm, load_base_file
from controlnet.checkpoints.control_file import load_control
from controlnet.checkpoints.folder import load_base_folder, save_base_folder
from controlnet.checkpoints.parts import BaseParts, structure
from controlnet.checkpoints.tensor_file import open_tensors, write_tensors
from controlnet.data.circles import write_circles
from controlnet.errors import UserError
from controlnet.generation.pipeline import generate
from controlnet.generation.unit import Unit
from controlnet.training.config import TrainConfig
from controlnet.training.run import train

UNET = "model.diffusion_model."
families = pytest.mark.parametrize("family", tiny.FAMILIES)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of narrow bases with the heads of full-size ones, each with `base.safetensors` without a header."""
    home = tmp_path_factory.mktemp("bases")
    for family in tiny.FAMILIES:
        parts = tiny_folders.make_true_parts(home / family, family)
        save_base_folder(parts, home / family)
        write_tensors(home / family / "base.safetensors", base_to_ldm(parts))
    return {family: home / family for family in tiny.FAMILIES}


def tensors_of(folder: Path) -> dict[str, Tensor]:
    return dict(open_tensors(folder / "base.safetensors").tensors)


def load(folder: Path, tensors: Mapping[str, Tensor], path: Path, **options: object) -> BaseParts:
    """What a single file with these tensors holds, with the tokenizer and prediction of the base in `folder`."""
    write_tensors(path, tensors)
    return load_base_file(path, torch.float32, **{"tokenizer": folder, "prediction": "epsilon", **options})  # type: ignore[arg-type]


def states(parts: BaseParts) -> dict[str, Tensor]:
    models = [parts.unet, parts.vae, *parts.text_encoders]
    return {f"{place}.{name}": x for place, model in enumerate(models) for name, x in model.state_dict().items()}


def same(some: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> bool:
    """Bit for bit, with the same names."""
    return some.keys() == others.keys() and all(
        some[name].dtype == others[name].dtype and torch.equal(some[name], others[name]) for name in some
    )


def settings(parts: BaseParts) -> list[dict[str, object]]:
    """All configurations, without what only says who wrote them."""
    configs = [
        dict(parts.unet.config),
        dict(parts.vae.config),
        *(each.config.to_dict() for each in parts.text_encoders),
    ]
    said = ("_class_name", "_diffusers_version", "_use_default_values", "_name_or_path", "architectures", "dtype")
    return [{name: plain(value) for name, value in config.items() if name not in said} for config in configs]


def plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


@families
def test_weights_and_settings_of_a_single_file_are_those_of_its_folder(bases: dict[str, Path], family: tiny.Family):
    path = bases[family] / "base.safetensors"
    ours = load_base_file(path, None, tokenizer=bases[family], prediction="epsilon")
    folder = load_base_folder(bases[family], None)
    assert ours.family == family
    assert same(states(ours), states(folder))
    assert settings(ours) == settings(folder)
    said = scheduler_config(family) | {"prediction_type": "epsilon"}
    assert ours.scheduler_config == said
    assert [each.pad_token_id for each in ours.tokenizers] == [each.pad_token_id for each in folder.tokenizers]


@families
def test_a_file_read_and_written_again_is_bitwise_the_same(bases: dict[str, Path], family: tiny.Family, tmp_path: Path):
    path = tmp_path / "half.safetensors"
    write_tensors(path, tensors_of(bases[family]), dtype=torch.float16)
    half = dict(open_tensors(path).tensors)
    parts = load_base_file(path, None, tokenizer=bases[family], prediction="epsilon")
    written = tmp_path / "again.safetensors"
    write_tensors(written, base_to_ldm(parts), dtype=torch.float16)
    assert same(dict(open_tensors(written).tensors), half)


@families
@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_a_narrow_folder_exported_read_and_saved_again_is_bitwise_the_same(
    family: tiny.Family, suffix: str, tmp_path: Path
):
    """Heads, groups, sizes and tokenizers of these bases are told by no shape, so the file's header must tell them."""
    folder = tiny_folders.save_tiny_base(tmp_path / "base", family, "v_prediction")
    parts = load_base_folder(folder, None)
    path = tmp_path / f"base{suffix}"
    write_tensors(path, base_to_ldm(parts), base_metadata(parts))
    again = load_base_file(path, None)
    save_base_folder(again, tmp_path / "again")
    twin = load_base_folder(tmp_path / "again", None)
    assert same(states(twin), states(parts))
    assert settings(twin) == settings(parts)
    prompts = ["red bee", "abc xyz"]
    assert [each(prompts).input_ids for each in twin.tokenizers] == [
        each(prompts).input_ids for each in parts.tokenizers
    ]
    without_version = {name: it for name, it in twin.scheduler_config.items() if name != "_diffusers_version"}
    assert without_version.items() <= parts.scheduler_config.items()


def test_a_single_file_paints_the_picture_of_its_folder(bases: dict[str, Path]):
    folder = bases["sd1"]
    opened = [open_base(folder, "cpu"), open_base(folder / "base.safetensors", "cpu", tokenizer=folder)]
    pictures = [generate(base, "red bee", steps=2, size=(64, 64))[0] for base in opened]
    assert pictures[0].tobytes() == pictures[1].tobytes()
    assert opened[0].hash() == opened[1].hash()


class LightningCallback:
    """As a training framework's objects that `torch.save` keeps by reference to their class."""


def test_a_pickled_file_full_of_objects_opens_as_its_folder(bases: dict[str, Path], tmp_path: Path):
    path = tmp_path / "v1-5-pruned.ckpt"
    state = tensors_of(bases["sd1"])
    others = {"global_step": 840_000, "callbacks": {LightningCallback: LightningCallback()}, "optimizer_states": [{}]}
    torch.save({"pytorch-lightning_version": "1.4.2", "state_dict": state, **others}, path)
    parts = load_base_file(path, None, tokenizer=bases["sd1"])
    assert same(states(parts), states(load_base_folder(bases["sd1"], None)))


def test_training_and_generating_from_a_single_file(bases: dict[str, Path], tmp_path: Path):
    embedded = open_base(device="cpu")
    write_circles(tmp_path / "circles", count=8, size=64, seed=0)
    path = tmp_path / "base.safetensors"
    write_tensors(path, base_to_ldm(embedded), base_metadata(embedded), torch.float16)
    config = TrainConfig(
        data=tmp_path / "circles",
        out=tmp_path / "run",
        base=str(path),
        device="cpu",
        max_train_steps=1,
        train_batch_size=2,
        num_validation_images=1,
    )
    train(config)
    assert (tmp_path / "run" / "control.safetensors").is_file()
    base = open_base(path, device="cpu")
    control, _ = load_control(tmp_path / "run" / "control.safetensors", base)
    hint = next((tmp_path / "circles").rglob("source/*.png"))
    assert len(generate(base, "red circle", [Unit(control, hint)], steps=1)) == 1


# -- what the tables are compared with: diffusers' own


@families
def test_weights_are_those_that_diffusers_makes_of_the_same_file(bases: dict[str, Path], family: tiny.Family):
    path = bases[family] / "base.safetensors"
    kind = StableDiffusionXLPipeline if family == "sdxl" else StableDiffusionPipeline
    pipe = kind.from_single_file(str(path), config=str(bases[family]), local_files_only=True)
    ours = load_base_file(path, None, tokenizer=bases[family], prediction="epsilon")
    for model, twin in zip(
        [ours.unet, ours.vae, ours.text_encoders[0]], [pipe.unet, pipe.vae, pipe.text_encoder], strict=True
    ):
        assert same(model.state_dict(), twin.state_dict())
    if family == "sdxl":  # it takes a narrow second text encoder for none
        prefix = "conditioner.embedders.1.model."
        theirs = convert_open_clip_checkpoint(ours.text_encoders[1], tensors_of(bases[family]), prefix)
        assert same(ours.text_encoders[1].state_dict(), theirs)


@pytest.mark.parametrize("name", FULL_SIZE)
def test_a_full_size_export_has_exactly_the_originals_names_and_shapes(name: str):
    family: tiny.Family = "sd1" if name == "sd15" else "sd2"
    parts = full_size_parts(family, FULL_SIZE[name])
    shapes = {key: tuple(tensor.shape) for key, tensor in base_to_ldm(parts).items()}
    expected = {key: shape for key, shape in originals_shapes(name).items() if not key.startswith("control_model.")}
    found = {key: shapes[key] for key in shapes if key.startswith((UNET, "first_stage_model."))}
    assert found == expected
    texts = {key: shape for key, shape in shapes.items() if key.startswith("cond_stage_model.")}
    if family == "sd1":  # CLIP ViT-L/14: 12 layers of 16 tensors, 2 embeddings, 1 norm, 1 buffer
        assert len(texts) == 12 * 16 + 2 + 2 + 1
        assert texts["cond_stage_model.transformer.text_model.embeddings.position_ids"] == (1, 77)
    else:  # OpenCLIP ViT-H/14: 24 layers of 12 tensors, 2 embeddings, 1 norm, projection, scale
        assert len(texts) == 24 * 12 + 2 + 2 + 2
        assert texts["cond_stage_model.model.transformer.resblocks.23.attn.in_proj_weight"] == (3072, 1024)
        assert texts["cond_stage_model.model.text_projection"] == (1024, 1024)
        assert texts["cond_stage_model.model.logit_scale"] == ()
    buffers = {key: shape for key, shape in shapes.items() if "." not in key}
    assert buffers == dict.fromkeys(SCHEDULE, (1000,))


def full_size_parts(family: tiny.Family, unet_config: Mapping[str, object]) -> BaseParts:
    text = {
        "sd1": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "vocab_size": 49408},
        "sd2": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "vocab_size": 49408},
    }
    vae = {
        "block_out_channels": (128, 256, 512, 512),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 2,
    }
    return BaseParts(
        structure(UNet2DConditionModel, unet_config, "test"),
        structure(AutoencoderKL, vae, "test"),
        [structure(CLIPTextModel, text[family], "test")],
        [],
        scheduler_config(family),
        family,
    )


# -- the schedule's buffers, from theory


def test_the_buffers_are_what_follows_from_the_betas():
    """Ho et al. 2020, Eq. 7, by Bayes' rule: the product of the prior and the likelihood of one step."""
    made = {name: tensor.double() for name, tensor in base_file.schedule(SCHEDULER).items()}
    theirs = DDPMScheduler.from_config(SCHEDULER)
    torch.testing.assert_close(made["alphas_cumprod"].float(), theirs.alphas_cumprod, rtol=1e-5, atol=0)
    torch.testing.assert_close(made["betas"].float(), theirs.betas, rtol=1e-5, atol=0)
    beta, signal, before = made["betas"][1:], made["alphas_cumprod"][1:], made["alphas_cumprod_prev"][1:]
    assert torch.equal(before, made["alphas_cumprod"][:-1])
    likelihood, prior = (1 - beta) / beta, 1 / (1 - before)  # precisions of x[t] and x[0] about x[t - 1]
    variance = 1 / (likelihood + prior)
    torch.testing.assert_close(made["posterior_variance"][1:], variance, rtol=1e-3, atol=0)
    torch.testing.assert_close(made["posterior_mean_coef1"][1:], variance * prior * before.sqrt(), rtol=1e-3, atol=0)
    expected = variance * likelihood / (1 - beta).sqrt()
    torch.testing.assert_close(made["posterior_mean_coef2"][1:], expected, rtol=1e-3, atol=0)
    torch.testing.assert_close(made["posterior_log_variance_clipped"][1:].exp(), variance, rtol=1e-3, atol=0)
    assert made["posterior_variance"][0] == 0
    assert made["posterior_log_variance_clipped"][0].item() == pytest.approx(torch.tensor(1e-20).log().item())
    for name, expected in {
        "sqrt_alphas_cumprod": signal.sqrt(),
        "sqrt_one_minus_alphas_cumprod": (1 - signal).sqrt(),
        "log_one_minus_alphas_cumprod": (1 - signal).log(),
        "sqrt_recip_alphas_cumprod": 1 / signal.sqrt(),
        "sqrt_recipm1_alphas_cumprod": (1 / signal - 1).sqrt(),
        "logvar": torch.zeros(999),
    }.items():
        torch.testing.assert_close(made[name][1:].double(), expected.double(), rtol=1e-4, atol=1e-6)


# -- variants of files


def test_averaged_weights_are_taken_when_asked_for(bases: dict[str, Path], tmp_path: Path):
    tensors = tensors_of(bases["sd1"])
    means = {
        f"model_ema.{name.removeprefix('model.').replace('.', '')}": tensor + 1
        for name, tensor in tensors.items()
        if name.startswith(UNET)
    }
    counters = {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(5)}
    path = tmp_path / "ema.safetensors"
    plain = load(bases["sd1"], tensors | means | counters, path)
    mean = load_base_file(path, None, ema=True, tokenizer=bases["sd1"])
    original = load_base_folder(bases["sd1"], None)
    assert same(states(plain), states(original))
    expected = {name: tensor + 1 for name, tensor in original.unet.state_dict().items()}
    assert same(mean.unet.state_dict(), expected)
    assert same(mean.vae.state_dict(), original.vae.state_dict())


def test_averaged_weights_that_are_not_there_are_an_error(bases: dict[str, Path]):
    with pytest.raises(UserError, match=r"0 of \d+ averaged weights are in it, model_ema.*leave out --ema"):
        load_base_file(bases["sd1"] / "base.safetensors", None, ema=True, tokenizer=bases["sd1"])


NOT_NEEDED = (
    *SCHEDULE,
    *("lvlb_weights", "denoiser.sigmas", "v_pred", "ztsnr"),
    "cond_stage_model.transformer.text_model.embeddings.position_ids",
    *("cond_stage_model.logit_scale", "conditioner.embedders.0.logit_scale"),
    *("cond_stage_model.text_projection", "conditioner.embedders.0.transformer.text_projection.weight"),
    *("model_ema.decay", "control_model.input_hint_block.0.weight"),
    *("first_stage_model.loss.logvar", "embedding_manager.embedder.weight"),
)


def test_what_no_model_needs_is_passed_over_by_a_named_rule_and_nothing_else_is(bases: dict[str, Path]):
    extra = {name: torch.zeros(1) for name in NOT_NEEDED}
    assert base_file.needed(extra) == {}
    assert all(any(re.match(rule, name) for name in NOT_NEEDED) for rule in PASSED_OVER), "a rule for nothing"
    tensors = tensors_of(bases["sd1"])
    assert tensors.keys() - base_file.needed(tensors).keys() == {
        *SCHEDULE,
        "cond_stage_model.transformer.text_model.embeddings.position_ids",
    }


@pytest.mark.parametrize(
    "name", ["model.diffusion_model.adapter.weight", "first_stage_model.extra", "cond_stage_model.extra", "new.weight"]
)
def test_a_tensor_that_belongs_nowhere_is_named(bases: dict[str, Path], tmp_path: Path, name: str):
    with pytest.raises(UserError, match=re.escape(name)):
        load(bases["sd1"], tensors_of(bases["sd1"]) | {name: torch.zeros(1)}, tmp_path / "more.safetensors")


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("sd1", "model.diffusion_model.out.2.bias"),
        ("sd1", "model.diffusion_model.input_blocks.0.0.weight"),
        ("sd1", "first_stage_model.encoder.mid.attn_1.q.weight"),
        ("sd1", "cond_stage_model.transformer.text_model.final_layer_norm.bias"),
        ("sd2", "cond_stage_model.model.transformer.resblocks.3.attn.in_proj_bias"),
        ("sdxl", "conditioner.embedders.1.model.text_projection"),
        ("sdxl", "conditioner.embedders.1.model.token_embedding.weight"),
    ],
)
def test_a_tensor_that_is_missing_is_named(bases: dict[str, Path], tmp_path: Path, family: tiny.Family, name: str):
    tensors = tensors_of(bases[family])
    del tensors[name]
    with pytest.raises(UserError, match=re.escape(name)):
        load(bases[family], tensors, tmp_path / "less.safetensors")


@pytest.mark.parametrize(
    ("prefix", "part"), [("first_stage_model.", "vae"), ("cond_stage_model.", "text encoder"), (UNET, "VAE")]
)
def test_a_file_without_a_part_says_which(bases: dict[str, Path], tmp_path: Path, prefix: str, part: str):
    tensors = {name: tensor for name, tensor in tensors_of(bases["sd1"]).items() if not name.startswith(prefix)}
    with pytest.raises(UserError, match=rf"less.safetensors: .*{part}.*expected a (whole )?base"):
        load(bases["sd1"], tensors, tmp_path / "less.safetensors")


def test_a_base_for_inpainting_loads_and_one_for_editing_is_refused(bases: dict[str, Path], tmp_path: Path):
    tensors = tensors_of(bases["sd1"])
    tensors[f"{UNET}input_blocks.0.0.weight"] = torch.zeros(64, 9, 3, 3)
    assert load(bases["sd1"], tensors, tmp_path / "inpainting.safetensors").unet.config.in_channels == 9
    tensors[f"{UNET}input_blocks.0.0.weight"] = torch.zeros(64, 8, 3, 3)
    with pytest.raises(UserError, match="takes 8 channels, expected the VAE's 4 or, for inpainting, 5 more"):
        load(bases["sd1"], tensors, tmp_path / "editing.safetensors")


def test_a_narrow_base_of_others_cannot_tell_its_heads(tmp_path: Path):
    parts = load_base_folder(tiny_folders.save_tiny_base(tmp_path / "base", "sd2"), None)
    with pytest.raises(UserError, match="no multiple of the 64 that each head has(.|\n)*give the folder"):
        load(tmp_path / "base", base_to_ldm(parts), tmp_path / "narrow.safetensors")


def test_older_text_encoders_without_their_models_name_are_read(bases: dict[str, Path], tmp_path: Path):
    tensors = {name.replace(".text_model.", "."): tensor for name, tensor in tensors_of(bases["sd1"]).items()}
    assert "cond_stage_model.transformer.final_layer_norm.bias" in tensors
    parts = load(bases["sd1"], tensors, tmp_path / "older.safetensors")
    assert same(states(parts), states(load_base_folder(bases["sd1"], None)))


def test_a_projection_kept_the_other_way_round_is_read(bases: dict[str, Path], tmp_path: Path):
    tensors = tensors_of(bases["sdxl"])
    name = "conditioner.embedders.1.model.text_projection"
    tensors[f"{name}.weight"] = tensors.pop(name).T.contiguous()
    parts = load(bases["sdxl"], tensors, tmp_path / "other.safetensors")
    assert same(states(parts), states(load_base_folder(bases["sdxl"], None)))


# -- SD 2.x: its text encoder's last layer, and what it predicts


LAST = "cond_stage_model.model.transformer.resblocks.23."


def test_the_last_text_layer_of_sd2_is_not_heard_whatever_is_in_it(bases: dict[str, Path], tmp_path: Path):
    tensors = {
        name: torch.randn_like(x) if name.startswith(LAST) else x for name, x in tensors_of(bases["sd2"]).items()
    }
    assert sum(name.startswith(LAST) for name in tensors) == 12
    parts = load(bases["sd2"], tensors, tmp_path / "whole.safetensors")
    assert same(states(parts), states(load_base_folder(bases["sd2"], None)))


@pytest.mark.parametrize("left_out", [(LAST,), (LAST, "cond_stage_model.model.text_projection")])
def test_a_file_of_sd2_that_holds_only_the_layers_heard_is_read(
    bases: dict[str, Path], tmp_path: Path, left_out: tuple[str, ...]
):
    tensors = {name: x for name, x in tensors_of(bases["sd2"]).items() if not name.startswith(left_out)}
    parts = load(bases["sd2"], tensors, tmp_path / "heard.safetensors")
    assert same(states(parts), states(load_base_folder(bases["sd2"], None)))


def test_the_stand_in_of_the_last_text_layer_passes_on_what_it_gets(bases: dict[str, Path]):
    """By OpenCLIP's formulas: x + attention(norm(x)), then x + mlp(norm(x)); both branches end in zeros."""
    tensors = tensors_of(bases["sd2"])
    ends = [f"{LAST}{branch}.{kind}" for branch in ("attn.out_proj", "mlp.c_proj") for kind in ("weight", "bias")]
    assert not any(tensors[name].any() for name in ends)


def test_a_file_of_sd2_that_tells_no_prediction_asks_for_it(bases: dict[str, Path], tmp_path: Path):
    path = bases["sd2"] / "base.safetensors"
    with pytest.raises(UserError, match="--prediction v_prediction .*or epsilon"):
        load_base_file(path, None, tokenizer=bases["sd2"])
    said = load_base_file(path, None, tokenizer=bases["sd2"], prediction="v_prediction")
    assert said.prediction == "v_prediction"
    assert said.unet.config.sample_size == 96
    stepped = tmp_path / "stepped.ckpt"
    torch.save({"state_dict": tensors_of(bases["sd2"]), "global_step": 875_000}, stepped)
    assert load_base_file(stepped, None, tokenizer=bases["sd2"]).prediction == "epsilon"


def test_what_a_fine_tune_of_sdxl_predicts_is_told_by_marks_both_ways(bases: dict[str, Path], tmp_path: Path):
    marks = {"v_pred": torch.empty(0), "ztsnr": torch.empty(0)}
    path = tmp_path / "marked.safetensors"
    write_tensors(path, tensors_of(bases["sdxl"]) | marks)
    parts = load_base_file(path, None, tokenizer=bases["sdxl"])
    assert parts.prediction == "v_prediction"
    assert DDIMScheduler.from_config(parts.scheduler_config).alphas_cumprod[-1] < 1e-6
    assert base_to_ldm(parts).keys() >= marks.keys()
    assert not marks.keys() & tensors_of(bases["sdxl"]).keys()


# -- memory


def test_weights_in_their_own_precision_stay_views_of_the_file(bases: dict[str, Path]):
    path = bases["sd1"] / "base.safetensors"
    parts = load_base_file(path, torch.float32, tokenizer=bases["sd1"])
    assert mapped_share(states(parts), path) == 1
    half = load_base_file(path, torch.bfloat16, tokenizer=bases["sd1"])
    assert mapped_share(states(half), path) == 0


def mapped_share(tensors: Mapping[str, Tensor], path: Path) -> float:
    """The share of the tensors whose memory is that of the file, by the process's own map."""
    spans = [line.split()[0] for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(str(path))]
    ends = [[int(end, 16) for end in span.split("-")] for span in spans]
    mapped = [any(start <= x.data_ptr() < end for start, end in ends) for x in tensors.values()]
    return sum(mapped) / len(mapped)


def test_in_float16_the_vae_stays_in_float32(bases: dict[str, Path]):
    parts = load_base_file(bases["sd1"] / "base.safetensors", torch.float16, tokenizer=bases["sd1"])
    assert (parts.unet.dtype, parts.vae.dtype, parts.text_encoders[0].dtype) == (
        *(torch.float16, torch.float32, torch.float16),
    )
