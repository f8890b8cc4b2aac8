"""Controls of every format: the same weights under other names, with what is known of them."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

import tiny
from checkpoints.test_ldm import full_size_parts, originals_shapes
from controlnet.checkpoints import control_diffusers, ldm
from controlnet.checkpoints.control_conventions import with_convention
from controlnet.checkpoints.control_formats import format_for, open_control, our_names, to_names, write_control
from controlnet.checkpoints.control_metadata import ControlMetadata, Said, architecture_of
from controlnet.checkpoints.model_table import SECOND
from controlnet.control import ControlNet
from controlnet.errors import UserError
from parity.reference import relative_error

FORMATS = ("controlnet", "ldm", "webui", "diffusers")
SUFFIXES = {"controlnet": ".safetensors", "ldm": ".pth", "webui": ".safetensors", "diffusers": ""}


def control_of(family: tiny.Family, hint_channels: int = 3) -> tuple[ControlNet, ControlMetadata]:
    unet = tiny.unet(family)
    control = tiny.randomised(ControlNet.from_base(unet, hint_channels), seed=6)
    metadata = ControlMetadata(
        condition="canny",
        family=family,
        prediction_type="v_prediction",
        base_hash="c0ffee",
        block_channels=tuple(unet.config.block_out_channels),
        hint_channels=hint_channels,
        polarity="light on dark",
        architecture=architecture_of(unet.config),
        training={"steps": 412},
    )
    return control, metadata


CONTROLS = {family: control_of(family) for family in tiny.FAMILIES}


def write(folder: Path, name: str, state, metadata: ControlMetadata, to: str, dtype=None) -> Path:
    path = folder / f"{name}{SUFFIXES[to]}"
    write_control(path, state, metadata, to, dtype)
    return path


def same(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return mine.keys() == theirs.keys() and all(
        mine[name].dtype == theirs[name].dtype and torch.equal(mine[name], theirs[name]) for name in mine
    )


@pytest.mark.parametrize(
    ("family", "dtype"),
    [("sd1", torch.float32), ("sd1", torch.float16), ("sd2", torch.float16), ("sdxl", torch.bfloat16)],
    ids=str,
)
def test_from_every_format_to_every_other_all_is_bitwise_the_same(tmp_path, family, dtype):
    control, metadata = CONTROLS[family]
    state = {name: tensor.to(dtype) for name, tensor in control.state_dict().items()}
    for there in FORMATS:
        first = open_control(write(tmp_path, there, state, metadata, there))
        for back in FORMATS:
            second = open_control(write(tmp_path, f"{there}-{back}", first.state, first.metadata, back))
            assert same(second.state, state), (there, back)
            assert second.metadata == metadata, (there, back)


@settings(max_examples=8)
@given(
    st.integers(2, 4), st.integers(1, 3), st.integers(1, 3), st.sets(st.integers(0, 3), min_size=1), st.integers(1, 8)
)
def test_names_come_back_for_every_topology(levels, layers, depth, attended, hint_channels):
    down = ["CrossAttnDownBlock2D" if level in attended else "DownBlock2D" for level in range(levels)]
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            block_out_channels=[32] * levels,
            layers_per_block=layers,
            transformer_layers_per_block=depth,
            down_block_types=down,
            up_block_types=[kind.replace("Down", "Up") for kind in reversed(down)],
        )
        state = ControlNet.from_base(unet, hint_channels).state_dict()
    webui, diffusers = to_names(state, "webui"), to_names(state, "diffusers")
    assert {our_names(webui)[name]: id(tensor) for name, tensor in webui.items()} == identities(state)
    back = control_diffusers.ours_by_theirs(diffusers)
    assert {back[name]: id(tensor) for name, tensor in diffusers.items()} == identities(state)


def identities(state: dict[str, Tensor]) -> dict[str, int]:
    return {name: id(tensor) for name, tensor in state.items()}


@pytest.mark.parametrize("name", ["sd15", "sd21"])
def test_the_export_of_a_full_size_control_has_exactly_the_originals_names_and_shapes(name):
    _, control = full_size_parts(name)["control"]
    made = {key: tuple(tensor.shape) for key, tensor in to_names(control.state_dict(), "ldm").items()}
    originals = {key: shape for key, shape in originals_shapes(name).items() if key.startswith("control_model.")}
    assert len(made) == 340
    assert made == originals


@pytest.mark.parametrize("family", tiny.FAMILIES)
@torch.no_grad()
def test_diffusers_loads_the_export_and_says_the_same(tmp_path, family):
    control, metadata = CONTROLS[family]
    folder = write(tmp_path, "exported", control.state_dict(), metadata, "diffusers")
    twin, report = ControlNetModel.from_pretrained(folder, output_loading_info=True)
    latent, timestep, prompt, hint = tiny.inputs(family)
    mine = control(latent, timestep, prompt, control.encode_hint(hint))
    skips, middle = twin(latent, timestep, prompt.context_btd, hint, added_cond_kwargs=prompt.added, return_dict=False)
    assert not any(report.values())
    errors = [relative_error(a, b) for a, b in zip((*mine.skips, mine.middle), (*skips, middle), strict=True)]
    assert len(errors) == len(control.zero_convs) + 1
    assert max(errors) < 1e-6


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_control_that_diffusers_saved_opens(tmp_path, family):
    saved = ControlNetModel.from_unet(tiny.unet(family), conditioning_channels=4)
    tiny.randomised(saved).save_pretrained(tmp_path)
    file = open_control(tmp_path)
    assert file.metadata.family == family
    assert (file.metadata.prediction_type, file.metadata.base_hash, file.metadata.condition) == (None, None, "unknown")
    assert file.metadata.hint_channels == 4
    assert file.metadata.architecture == architecture_of(tiny.unet(family).config)
    assert same(to_names(file.state, "diffusers"), saved.state_dict())


def test_pickled_weights_of_a_diffusers_folder_are_read_too(tmp_path):
    saved = tiny.randomised(ControlNetModel.from_unet(tiny.unet("sd1")))
    saved.save_pretrained(tmp_path, safe_serialization=False)
    assert same(to_names(open_control(tmp_path).state, "diffusers"), saved.state_dict())


def test_the_lone_weights_of_a_diffusers_folder_still_say_what_they_are(tmp_path):
    control, metadata = CONTROLS["sd1"]
    folder = write(tmp_path, "exported", control.state_dict(), metadata, "diffusers")
    (folder / "diffusion_pytorch_model.safetensors").rename(tmp_path / "alone.safetensors")
    assert open_control(tmp_path / "alone.safetensors").metadata == metadata


def test_the_config_of_a_diffusers_folder_says_channel_order_and_averaging(tmp_path):
    control, metadata = CONTROLS["sd1"]
    odd = replace(metadata, channel_order="BGR", averaged=True)
    folder = write(tmp_path, "exported", control.state_dict(), odd, "diffusers")
    config = json.loads((folder / "config.json").read_text())
    assert config["controlnet_conditioning_channel_order"] == "bgr"
    assert config["global_pool_conditions"] is True
    del config["_controlnet"]
    (folder / "config.json").write_text(json.dumps(config))
    save_file(load_file(folder / "diffusion_pytorch_model.safetensors"), folder / "diffusion_pytorch_model.safetensors")
    assert (open_control(folder).metadata.channel_order, open_control(folder).metadata.averaged) == ("BGR", True)


def full_model(family: tiny.Family = "sd1") -> dict[str, Tensor]:
    """A single file of the first release: U-Net, VAE, text encoder and control."""
    control, _ = CONTROLS[family]
    return {
        **ldm.to_ldm(ldm.UNET, tiny.unet(family)),
        "first_stage_model.encoder.conv_in.weight": torch.zeros(8, 3, 3, 3),
        "cond_stage_model.transformer.text_model.final_layer_norm.weight": torch.zeros(24),
        "betas": torch.zeros(1000),
        **ldm.to_ldm(ldm.CONTROL, control),
    }


def test_the_control_is_taken_out_of_a_full_model(tmp_path):
    path = tmp_path / "control_sd15_canny.pth"
    torch.save({"state_dict": full_model(), "global_step": 5}, path)
    file = open_control(path)
    assert file.is_full
    assert same(file.state, CONTROLS["sd1"][0].state_dict())
    assert file.metadata.condition == "canny"


@pytest.mark.parametrize(
    ("name", "condition", "polarity", "order"),
    [
        ("control_sd15_canny.pth", "canny", "light on dark", "RGB"),
        ("control_sd15_normal.pth", "normal", "none", "BGR"),
        ("control_sd15_openpose.pth", "pose", "none", "RGB"),
        ("control_normal-fp16.safetensors", "normal", "none", "BGR"),
        ("sd-controlnet-normal/config.json", "normal", "none", "BGR"),
        ("control_v11p_sd15_normalbae.pth", "normal", "none", "RGB"),
        ("control_v11p_sd15_softedge_fp16.safetensors", "hed", "light on dark", "RGB"),
        ("control_v11p_sd15s2_lineart_anime.pth", "lineart_anime", "light on dark", "RGB"),
        ("control_v11f1p_sd15_depth.pth", "depth", "near is light", "RGB"),
        ("control_v11f1e_sd15_tile.pth", "tile", "none", "RGB"),
        ("control_v11p_sd21_ade20k.safetensors", "seg", "none", "RGB"),
        (
            "models--thibaud--controlnet-sd21-zoedepth-diffusers/snapshots/1/config.json",
            "depth",
            "near is light",
            "RGB",
        ),
        ("xinsir/controlnet-scribble-sdxl-1.0/config.json", "scribble", "light on dark", "RGB"),
        ("controlnet-canny-sdxl-1.0-mid/config.json", "canny", "light on dark", "RGB"),
        ("diffusers_xl_canny_full.safetensors", "canny", "light on dark", "RGB"),
        ("mine.safetensors", "unknown", "unknown", "RGB"),
        ("control_mine.safetensors", "unknown", "unknown", "RGB"),
    ],
)
def test_public_controls_are_known_by_their_names(name, condition, polarity, order):
    _, metadata = CONTROLS["sd1"]
    unknown = replace(metadata, condition="unknown", polarity="unknown")
    known = with_convention(unknown, Path("/models") / name)
    assert (known.condition, known.polarity, known.channel_order) == (condition, polarity, order)
    assert known.hint_range == "0..1"


def test_only_the_shuffle_models_features_are_averaged():
    _, metadata = CONTROLS["sd1"]
    names = [f"{stem}_{word}" for word, stem in SECOND.items()]
    averaged = {name for name in names if with_convention(metadata, Path(f"{name}.pth")).averaged}
    assert averaged == {"control_v11e_sd15_shuffle"}


def test_what_the_user_says_prevails_over_the_name_and_the_file(tmp_path):
    control, metadata = CONTROLS["sd1"]
    path = write(tmp_path, "control_sd15_normal", control.state_dict(), metadata, "controlnet")
    told = open_control(path, Said("depth", "BGR", "near is light")).metadata
    assert (told.condition, told.channel_order, told.polarity) == ("depth", "BGR", "near is light")
    assert open_control(path).metadata == metadata, "a file that speaks for itself is believed, not its name"


def missing(tensors):
    del tensors["zero_convs.3.0.bias"]


def misshapen(tensors):
    tensors["zero_convs.3.0.bias"] = torch.zeros(7)


def unexpected(tensors):
    tensors["adapter.weight"] = torch.zeros(1)


def unexpected_inside(tensors):
    tensors["input_blocks.1.0.in_layers.7.weight"] = torch.zeros(1)


def differences(tensors):
    tensors["difference"] = torch.zeros(0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (missing, "1 missing: zero_convs.3.bias"),
        (misshapen, r"zero_convs.3.bias \(7,\), expected \(32,\)"),
        (unexpected, "1 unexpected: adapter.weight"),
        (unexpected_inside, "1 unexpected: .*in_layers.7.weight"),
        (differences, "differences to SD 1.5's weights"),
    ],
)
def test_every_tensor_is_accounted_for(tmp_path, change, said):
    tensors = to_names(CONTROLS["sd1"][0].state_dict(), "webui")
    change(tensors)
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=said):
        open_control(tmp_path / "a.safetensors")


@given(st.data())
@settings(max_examples=15)
def test_a_damaged_control_is_at_worst_a_user_error(tmp_path_factory, data):
    tensors = to_names(
        CONTROLS["sdxl"][0].state_dict(), data.draw(st.sampled_from(["webui", "diffusers", "controlnet"]))
    )
    for name in data.draw(st.lists(st.sampled_from(sorted(tensors)), min_size=1, max_size=3, unique=True)):
        tensors[name] = data.draw(st.sampled_from([torch.zeros(()), torch.zeros(0), torch.zeros(1, 1, 1, 1, 1)]))
    save_file(tensors, path := tmp_path_factory.mktemp("damaged") / "a.safetensors")
    with pytest.raises(UserError):
        open_control(path)


@pytest.mark.parametrize(
    "said",
    [
        {"family": 3},
        {"family": "sd9"},
        {"block_channels": "wide"},
        {"block_channels": [0, -1]},
        {"hint_channels": 10**30},
        {"architecture": {"norm_num_groups": 7}},
        {"architecture": {"attention_head_dim": "os.system"}},
        {"averaged": "yes"},
        {"condition": None},
        {"channel_order": "GBR"},
    ],
    ids=str,
)
def test_a_header_with_nonsense_is_at_worst_a_user_error(tmp_path, said):
    control, metadata = CONTROLS["sd1"]
    header = json.dumps(json.loads(metadata.to_json()) | said)
    save_file(control.state_dict(), tmp_path / "a.safetensors", {"controlnet": header})
    with pytest.raises(UserError):
        open_control(tmp_path / "a.safetensors")


def test_a_small_control_of_sdxl_that_hears_no_prompt_goes_through_every_format(tmp_path):
    config = dict(ControlNetModel.from_unet(tiny.unet("sdxl")).config)
    config |= {"down_block_types": ["DownBlock2D"] * 3, "mid_block_type": "UNetMidBlock2D"}
    small = tiny.randomised(ControlNetModel.from_config(config))
    small.save_pretrained(tmp_path / "diffusers")
    opened = open_control(tmp_path / "diffusers")
    assert (opened.metadata.family, opened.metadata.block_channels) == ("sdxl", (32, 64, 128))
    for number, to in enumerate(("ldm", "webui", "controlnet", "diffusers")):
        opened = open_control(write(tmp_path, f"{number}", opened.state, opened.metadata, to))
    twin = ControlNetModel.from_pretrained(tmp_path / "3")
    assert same(dict(twin.state_dict()), dict(small.state_dict()))


NO_CONTROLS = {
    "LoRA form": {
        "lora_controlnet": torch.zeros(0),
        "input_hint_block.0.weight": torch.zeros(16, 3, 3, 3),
        "input_blocks.0.0.up": torch.zeros(8, 2),
        "input_blocks.0.0.down": torch.zeros(2, 8),
    },
    "T2I-Adapter": {"adapter.body.0.resnets.0.block1.weight": torch.zeros(8, 8, 3, 3)},
    "union": {
        **to_names(CONTROLS["sdxl"][0].state_dict(), "diffusers"),
        "task_embedding": torch.zeros(6, 8),
        "control_add_embedding.linear_1.weight": torch.zeros(8, 8),
    },
    "SD3 or Flux": {"controlnet_blocks.0.weight": torch.zeros(8, 8)},
    "VAE": {"encoder.mid_block.resnets.0.norm1.weight": torch.zeros(8), "decoder.mid_block.x.weight": torch.zeros(8)},
}


@pytest.mark.parametrize("kind", NO_CONTROLS)
def test_what_is_no_control_of_ours_is_refused_by_its_name(tmp_path, kind):
    save_file(NO_CONTROLS[kind], tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=f"{kind}.*expected a ControlNet"):
        open_control(tmp_path / "a.safetensors")


def test_a_folder_with_a_config_and_no_weights_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"no diffusion_pytorch_model\.safetensors beside its config\.json"):
        open_control(tmp_path)


def test_a_narrow_control_whose_heads_nobody_told_is_not_given_to_diffusers_with_a_guess(tmp_path):
    control, metadata = CONTROLS["sd1"]
    with pytest.raises(UserError, match="--base"):
        write(tmp_path, "exported", control.state_dict(), replace(metadata, architecture={}), "diffusers")
    assert not (tmp_path / "exported").exists()


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a.safetensors", "controlnet"), ("a.pth", "ldm"), ("a.ckpt", "ldm"), ("folder", "diffusers")],
)
def test_a_files_suffix_tells_its_format(name, expected):
    assert format_for(Path(name)) == expected


def test_an_unknown_suffix_is_refused():
    with pytest.raises(UserError, match=r"\.gguf is no known suffix"):
        format_for(Path("a.gguf"))
