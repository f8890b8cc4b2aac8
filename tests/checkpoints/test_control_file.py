"""A control file says what it was made for, and is refused where it does not belong."""

import copy
import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import tiny
from controlnet.checkpoints.control_file import (
    PACKAGED,
    ControlMetadata,
    find_control,
    load_control,
    read_metadata,
    save_control,
)
from controlnet.checkpoints.control_formats import to_names, write_control
from controlnet.control import ControlNet
from controlnet.errors import UserError
from parity.reference import relative_error


@dataclass
class Schedule:
    prediction_type: str = "epsilon"


@dataclass
class Base:
    """All that a control file asks of a base."""

    unet: UNet2DConditionModel
    family: tiny.Family
    schedule: Schedule = field(default_factory=Schedule)

    def hash(self) -> str:
        return "c0ffee"


@pytest.fixture(scope="module")
def base() -> Base:
    return Base(tiny.unet("sd1"), "sd1")


@pytest.fixture(scope="module")
def control(base) -> ControlNet:
    return tiny.randomised(ControlNet.from_base(base.unet), seed=6)


@pytest.fixture(scope="module")
def metadata(base, control) -> ControlMetadata:
    return ControlMetadata.of(base, control, "circle", polarity="light on dark", training={"steps": 412})


@pytest.fixture
def run(tmp_path, control, metadata) -> Path:
    save_control(tmp_path / "run" / "control.safetensors", control, metadata)
    return tmp_path / "run"


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_control_comes_back_bitwise_with_all_that_was_said_of_it(tmp_path, family):
    base = Base(tiny.unet(family), family, Schedule("v_prediction"))
    control = tiny.randomised(ControlNet.from_base(base.unet, hint_channels=4), seed=6)
    metadata = ControlMetadata.of(base, control, "normal", training={"steps": 412, "learning_rate": 1e-4})
    save_control(tmp_path / "a.safetensors", control, metadata)
    loaded, read = load_control(tmp_path / "a.safetensors", base)
    assert read == metadata == read_metadata(tmp_path / "a.safetensors")
    assert read.hint_channels == 4
    saved = control.state_dict()
    assert saved.keys() == loaded.state_dict().keys()
    assert all(torch.equal(tensor, saved[name]) for name, tensor in loaded.state_dict().items())


def test_a_loaded_control_acts_like_the_saved_one(run, base, control):
    loaded, _ = load_control(run, base)
    latent, timestep, prompt, hint = tiny.inputs("sd1")
    mine, theirs = (each(latent, timestep, prompt, each.encode_hint(hint)) for each in (loaded, control))
    assert torch.equal(mine.middle, theirs.middle)
    assert not mine.middle.requires_grad


def test_a_runs_folder_means_its_control_and_not_the_runs_config(run, base):
    (run / "config.json").write_text('{"data": "circles"}')
    assert load_control(run, base)[1] == load_control(str(run / "control.safetensors"), base)[1]


def test_a_folder_of_a_packaged_controls_name_does_not_hide_it(tmp_path, monkeypatch):
    (tmp_path / "circle").mkdir()
    monkeypatch.chdir(tmp_path)
    assert find_control("circle").name == "control.safetensors"


def test_a_half_precision_file_is_half_as_big_and_loads_in_the_bases_precision(tmp_path, run, base, control, metadata):
    save_control(tmp_path / "half.safetensors", control, metadata, torch.float16)
    half, whole = ((path).stat().st_size for path in (tmp_path / "half.safetensors", run / "control.safetensors"))
    assert half < 0.55 * whole
    assert {tensor.dtype for tensor in load_file(tmp_path / "half.safetensors").values()} == {torch.float16}
    loaded, _ = load_control(tmp_path / "half.safetensors", base)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}


def test_a_control_in_channels_last_layout_is_saved_alike(tmp_path, run, control, metadata):
    save_control(tmp_path / "last.safetensors", copy.deepcopy(control).to(memory_format=torch.channels_last), metadata)
    assert (tmp_path / "last.safetensors").read_bytes() == (run / "control.safetensors").read_bytes()


def test_saving_leaves_one_file_and_nothing_else(run):
    assert [path.name for path in run.iterdir()] == ["control.safetensors"]


def test_a_base_of_another_kind_is_refused_with_all_reasons_at_once(run):
    other = Base(tiny.unet("sdxl"), "sdxl", Schedule("v_prediction"))
    with pytest.raises(UserError) as error:
        load_control(run, other)
    assert "base family: the control was made for sd1, the base has sdxl" in str(error.value)
    assert "prediction type: the control was made for epsilon, the base has v_prediction" in str(error.value)
    assert "block channels: the control was made for (32, 64, 128, 128), the base has (32, 64, 128)" in str(error.value)


def test_hints_of_another_range_are_refused(tmp_path, base, control, metadata):
    odd = replace(metadata, hint_range="-1..1")
    save_control(tmp_path / "odd.safetensors", control, odd)
    with pytest.raises(UserError, match=r"hint range: the control was made for -1\.\.1, hints here"):
        load_control(tmp_path / "odd.safetensors", base)


@torch.no_grad()
def test_a_control_of_bgr_hints_says_of_rgb_ones_what_it_said_of_them(tmp_path, base, control, metadata):
    save_control(tmp_path / "bgr.safetensors", control, replace(metadata, channel_order="BGR"))
    loaded, read = load_control(tmp_path / "bgr.safetensors", base)
    latent, timestep, prompt, hint_rgb = tiny.inputs("sd1")
    mine = loaded(latent, timestep, prompt, loaded.encode_hint(hint_rgb))
    theirs = control(latent, timestep, prompt, control.encode_hint(hint_rgb.flip(1)))
    assert relative_error(mine.middle, theirs.middle) < 1e-5
    assert read == metadata, "to the loaded control RGB is right, so that saving it again says the truth"
    assert read_metadata(tmp_path / "bgr.safetensors").channel_order == "BGR"


def test_what_is_said_prevails(run, base, metadata):
    _, read = load_control(run, base, condition="canny", channel_order="BGR", polarity="dark on light")
    assert read == replace(metadata, condition="canny", polarity="dark on light")


@torch.no_grad()
def test_averaged_features_are_the_same_everywhere_in_the_picture(tmp_path, base, control, metadata):
    save_control(tmp_path / "shuffle.safetensors", control, replace(metadata, averaged=True))
    loaded, _ = load_control(tmp_path / "shuffle.safetensors", base)
    latent, timestep, prompt, hint = tiny.inputs("sd1")
    mine, plain = (each(latent, timestep, prompt, each.encode_hint(hint)) for each in (loaded, control))
    for averaged, feature in zip((*mine.skips, mine.middle), (*plain.skips, plain.middle), strict=True):
        assert relative_error(averaged, feature.mean((2, 3), keepdim=True)) < 1e-5


@pytest.mark.parametrize("layout", ["ldm", "webui", "diffusers", "controlnet"])
def test_a_control_in_any_format_is_loaded(tmp_path, base, control, metadata, layout):
    path = tmp_path / ("folder" if layout == "diffusers" else "a.safetensors")
    write_control(path, control.state_dict(), metadata, layout)
    loaded, read = load_control(path, base)
    saved = control.state_dict()
    assert read == metadata
    assert all(torch.equal(tensor, saved[name]) for name, tensor in loaded.state_dict().items())


def test_a_control_that_says_nothing_of_itself_goes_with_every_base_of_its_family(tmp_path, control):
    weights_alone = tmp_path / "control_sd15_canny.safetensors"
    save_file(to_names(control.state_dict(), "webui"), weights_alone)
    for prediction in ("epsilon", "v_prediction"):
        _, read = load_control(weights_alone, Base(tiny.unet("sd1"), "sd1", Schedule(prediction)))
        assert (read.condition, read.prediction_type, read.base_hash) == ("canny", None, None)


def test_a_foreign_control_of_another_family_is_refused_before_it_is_loaded(tmp_path, control):
    save_file(to_names(control.state_dict(), "webui"), tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="base family: the control was made for sd1, the base has sd2"):
        load_control(tmp_path / "a.safetensors", Base(tiny.unet("sd2"), "sd2"))


def test_the_control_in_this_package_is_read():
    assert (PACKAGED / "circle" / "control.safetensors").is_file()
    assert read_metadata("circle").condition == "circle"


@pytest.mark.parametrize("later", ["architecture", "averaged"])
def test_a_header_from_before_a_field_was_added_is_read(run, base, metadata, later):
    older = rewritten(run, lambda _, header: header.pop(later))
    default = {"architecture": {}, "averaged": False}[later]
    assert load_control(older, base)[1] == replace(metadata, **{later: default})


def test_another_base_of_the_same_kind_is_welcome(run):
    control, _ = load_control(run, Base(tiny.unet("sd1", seed=99), "sd1"))
    saved = load_file(run / "control.safetensors")
    assert all(torch.equal(tensor, saved[name]) for name, tensor in control.state_dict().items())


def rewritten(run: Path, change) -> Path:
    """The control with its tensors and header changed by hand."""
    path = run / "control.safetensors"
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["controlnet"])
    tensors = load_file(path)
    change(tensors, header)
    save_file(tensors, run / "changed.safetensors", {"controlnet": json.dumps(header)})
    return run / "changed.safetensors"


def test_missing_and_unexpected_tensors_are_named_not_passed_over(run, base):
    def change(tensors, _):
        del tensors["zero_convs.3.bias"]
        tensors["zero_convs.99.bias"] = torch.zeros(1)

    with pytest.raises(UserError, match=r"1 missing: zero_convs\.3\.bias\n.*1 unexpected: zero_convs\.99\.bias"):
        load_control(rewritten(run, change), base)


def test_a_newer_format_is_refused_by_its_number(run, base):
    with pytest.raises(UserError, match="version 2 of the format, expected 1"):
        load_control(rewritten(run, lambda _, header: header.update(format_version=2)), base)


@pytest.mark.parametrize("header", ["no JSON", "[]", "3"])
def test_a_header_that_cannot_be_understood_is_refused(tmp_path, base, control, header):
    save_file(control.state_dict(), tmp_path / "a.safetensors", {"controlnet": header})
    with pytest.raises(UserError, match="its header is damaged"):
        load_control(tmp_path / "a.safetensors", base)


def test_a_header_without_one_of_its_fields_is_refused(run, base):
    with pytest.raises(UserError, match="hint_range"):
        load_control(rewritten(run, lambda _, header: header.pop("hint_range")), base)


@pytest.mark.parametrize("content", [b"", b"no safetensors at all", b"\xff" * 64], ids=["empty", "text", "bytes"])
def test_a_file_that_is_no_safetensors_is_refused(tmp_path, base, content):
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.safetensors: "):
        load_control(tmp_path / "a.safetensors", base)


def test_a_file_that_was_cut_off_is_refused(run, base):
    path = run / "control.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(UserError, match="cut off"):
        load_control(path, base)


def test_a_folder_without_a_control_is_refused(tmp_path, base):
    with pytest.raises(UserError, match=r"neither control\.safetensors nor config\.json in this folder"):
        load_control(tmp_path, base)


def test_a_public_control_that_is_not_in_the_cache_is_not_fetched_but_named(base, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="controlnet models fetch"):
        load_control("canny", base)


def test_a_control_that_is_not_there_is_refused(tmp_path, base):
    with pytest.raises(UserError, match="no such file"):
        load_control(tmp_path / "absent.safetensors", base)
