"""What a control learned, moved to another base: control + new - old where the base has a twin."""

from pathlib import Path

import pytest
import torch

import tiny
from checkpoints.made import another, control_for, of_part, same, save_base
from controlnet.checkpoints import ldm
from controlnet.checkpoints.control_formats import open_control, to_names, write_control
from controlnet.checkpoints.control_metadata import ControlMetadata, architecture_of
from controlnet.checkpoints.tensor_file import open_tensors, write_tensors
from controlnet.checkpoints.transfer import moved, transfer
from controlnet.cli.main import run
from controlnet.errors import UserError

DECODER = "model.diffusion_model.output_blocks.3.0.in_layers.2.weight"


class Files:
    """Two bases, the old one also as a folder, and a control that was trained on it."""

    def __init__(self, home: Path, family: tiny.Family) -> None:
        self.folder, self.old = save_base(home / family, family)
        self.new = another(self.old, home / f"{family}-new.safetensors", seed=7)
        self.control = home / f"{family}-control.safetensors"
        config = tiny.unet(family).config
        metadata = ControlMetadata(
            condition="canny",
            family=family,
            prediction_type="epsilon",
            base_hash="c0ffee",
            block_channels=tuple(config.block_out_channels),
            architecture=architecture_of(config),
        )
        write_control(self.control, control_for(family).state_dict(), metadata, "controlnet")

    def full(self, path: Path, **changed: torch.Tensor) -> Path:
        """A full model as the original's training writes it, with some of the base's weights changed."""
        tensors = dict(open_tensors(self.old).tensors)
        write_tensors(path, {**tensors, **changed, **to_names(open_control(self.control).state, "ldm")})
        return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Files]:
    home = tmp_path_factory.mktemp("transfer")
    return {family: Files(home, family) for family in tiny.FAMILIES}


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_weight_with_a_twin_is_offset_by_the_bases_difference_and_the_others_are_copied(files, family):
    made = files[family]
    control = to_names(open_control(made.control).state, "ldm")
    result = to_names(transfer(made.old, made.control, made.new).state, "ldm")
    old, new = (open_tensors(path).tensors for path in (made.old, made.new))
    twins = 0
    for name, tensor in control.items():
        twin = name.replace("control_model.", "model.diffusion_model.")
        if twin in old:
            twins += 1
            assert torch.equal(result[name], tensor - old[twin] + new[twin]), name
        else:
            assert torch.equal(result[name], tensor), name
    assert twins == transfer(made.old, made.control, made.new).offset
    assert len(control) - twins == 2 * (len(tiny.unet(family).config.block_out_channels) * 3 + 1 + 8)


def test_a_folder_of_the_old_base_gives_the_same_as_its_single_file(files):
    made = files["sd1"]
    from_folder, from_file = (transfer(old, made.control, made.new).state for old in (made.folder, made.old))
    assert same(dict(from_folder), dict(from_file))


def test_to_the_same_base_nothing_moves(files):
    made = files["sd1"]
    before = open_control(made.control).state
    after = transfer(made.old, made.control, made.old).state
    assert max((after[name] - before[name]).abs().max().item() for name in before) < 1e-6


def test_there_and_back_again_it_is_the_same_but_for_rounding(files, tmp_path):
    made = files["sd1"]
    there = transfer(made.old, made.control, made.new)
    write_control(tmp_path / "there.safetensors", there.state, there.metadata, "controlnet")
    back = transfer(made.new, tmp_path / "there.safetensors", made.old).state
    before = open_control(made.control).state
    assert max((back[name] - before[name]).abs().max().item() for name in before) < 1e-5


def test_half_precision_controls_are_offset_in_single_precision_and_stay_half():
    trained, old, new = torch.tensor([1.0], dtype=torch.float16), torch.tensor([2049.0]), torch.tensor([2050.0])
    result = moved(trained, old, new)
    assert (result.item(), result.dtype) == (2.0, torch.float16)


def test_the_metadata_say_that_the_very_base_is_another(files):
    metadata = transfer(files["sd1"].old, files["sd1"].control, files["sd1"].new).metadata
    assert (metadata.condition, metadata.base_hash, metadata.prediction_type) == ("canny", None, "epsilon")


def test_a_full_model_has_all_of_the_new_base(files, tmp_path):
    made = files["sd1"]
    arguments = [
        "--from-base",
        made.folder,
        "--control",
        made.control,
        "--to-base",
        made.new,
        "--out",
        tmp_path / "d.ckpt",
    ]
    assert run(["transfer", *map(str, arguments)]) == 0
    written = dict(open_tensors(tmp_path / "d.ckpt").tensors)
    control = of_part(written, ldm.CONTROL)
    assert same(control, to_names(transfer(made.old, made.control, made.new).state, "ldm"))
    rest = {name: tensor for name, tensor in written.items() if name not in control}
    assert same(rest, dict(open_tensors(made.new).tensors))


def test_a_locked_full_model_changes_nothing_of_the_new_base(files, tmp_path):
    made = files["sd1"]
    assert not transfer(made.old, made.full(tmp_path / "locked.ckpt"), made.new).unlocked


def test_decoder_weights_that_were_trained_too_move_with_the_control(files, tmp_path):
    made = files["sd1"]
    old, new = (open_tensors(path).tensors[DECODER] for path in (made.old, made.new))
    full = made.full(tmp_path / "unlocked.ckpt", **{DECODER: old + 1})
    result = transfer(made.folder, full, made.new)
    assert result.unlocked.keys() == {DECODER}
    assert torch.equal(result.unlocked[DECODER], (old + 1) - old + new)
    assert torch.equal(result.full_base().tensors[DECODER], result.unlocked[DECODER])


def test_an_unlocked_control_is_not_written_without_its_decoder(files, tmp_path, capsys):
    made = files["sd1"]
    full = made.full(tmp_path / "unlocked.ckpt", **{DECODER: open_tensors(made.old).tensors[DECODER] + 1})
    arguments = ["--from-base", made.old, "--control", full, "--to-base", made.new, "--out", tmp_path / "d.safetensors"]
    assert run(["transfer", *map(str, arguments)]) == 2
    assert "1 weights of its base were trained too" in capsys.readouterr().err
    assert not (tmp_path / "d.safetensors").exists()


@pytest.mark.parametrize("odd", ["old", "control", "new"])
def test_families_are_checked_first_and_all_named(files, odd):
    parts = {"old": files["sd1"].old, "control": files["sd1"].control, "new": files["sd1"].new}
    parts[odd] = getattr(files["sd2"], odd)
    with pytest.raises(UserError, match=r"only between bases of its own family; found .*SD 2\.x"):
        transfer(**parts)


def test_the_command_says_what_it_did(files, tmp_path, capsys):
    made = files["sd1"]
    arguments = ["--from-base", made.old, "--control", made.control, "--to-base", made.new]
    assert run(["transfer", *map(str, arguments), "--out", str(tmp_path / "folder")]) == 0
    assert "298 weights of the control moved to" in capsys.readouterr().out
    assert same(dict(open_control(tmp_path / "folder").state), dict(transfer(made.old, made.control, made.new).state))
