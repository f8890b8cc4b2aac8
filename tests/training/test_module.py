"""What trains: in anybody's Trainer, locked and unlocked, in any stage of a run."""

import copy
import re
import shutil
from dataclasses import replace
from pathlib import Path

import diffusers
import pytest
import torch
from safetensors.torch import load_file

import tiny
from controlnet.base import Base, open_base
from controlnet.checkpoints.control_file import ControlMetadata, load_control, save_control
from controlnet.checkpoints.control_formats import open_control
from controlnet.checkpoints.convert import convert_control
from controlnet.checkpoints.merge import merge
from controlnet.cli.main import run
from controlnet.control import ControlNet, Decoder
from controlnet.data.circles import write_circles
from controlnet.errors import UserError
from controlnet.generation.pipeline import generate_pixels
from controlnet.generation.unit import Unit
from controlnet.training.beginning import module_options
from controlnet.training.checkpoint import checkpoint_path
from controlnet.training.config import TrainConfig
from controlnet.training.module import ControlNetModule
from controlnet.training.pictures import encode_pictures
from controlnet.training.publishing import write_model
from controlnet.training.run import train

PAGE = Path(__file__).parents[2] / "docs" / "training.md"


def config(circles: Path, out: Path, steps: int, **others: object) -> TrainConfig:
    values = {"train_batch_size": 2, "num_validation_images": 1, "learning_rate": 1e-3, "validation_steps": 100}
    return TrainConfig(data=circles, out=out, max_train_steps=steps, device="cpu", **{**values, **others})  # type: ignore[arg-type]


def pictures(count: int = 2, side: int = 64) -> dict[str, object]:
    jpg, hint = torch.rand(2, count, side, side, 3, generator=torch.Generator().manual_seed(0))
    return {"jpg": jpg * 2 - 1, "txt": ["red"] * count, "hint": hint}


def moments(path: Path) -> dict[str, torch.Tensor]:
    """The optimizer's means of gradients in a checkpoint, by their names."""
    return {name: each for name, each in load_file(path).items() if name.endswith("exp_avg")}


@pytest.fixture(scope="module")
def finished(base: Base, circles: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two locked steps."""
    out = tmp_path_factory.mktemp("runs") / "run"
    train(config(circles, out, 2, ema_decay=0.9), base=base)
    return out


@pytest.fixture
def unlocked(base: Base, tmp_path: Path) -> Path:
    """A control with a decoder of its own, every weight of both random."""
    module = ControlNetModule(base, sd_unlocked=True)
    tiny.randomised(module.control, seed=7)
    module.save(tmp_path / "unlocked.safetensors", "circle")
    return tmp_path / "unlocked.safetensors"


def test_the_example_of_the_page_trains_in_a_trainer_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (code,) = re.findall(r"```python\n(import json.*?)```", PAGE.read_text(), re.DOTALL)
    lines = [line for line in code.splitlines() if line and not line.startswith(("import", "from"))]
    assert len(lines) == 15
    monkeypatch.chdir(tmp_path)
    write_circles(tmp_path / "circles", count=4, size=128, seed=0)
    exec(code.replace("max_steps=1000", "max_steps=2"), {})
    control, metadata = load_control(tmp_path / "control.safetensors", open_base("embedded", device="cpu"))
    assert metadata.condition == "circle"
    assert control.zero_conv_middle.weight.abs().sum() > 0


def test_pictures_in_the_wrong_range_are_told(base: Base) -> None:
    batch = pictures()
    with pytest.raises(UserError, match=r"`hint` .* values from -1 to 1; expected .* in \[0, 1\]"):
        encode_pictures(base, {**batch, "hint": batch["jpg"]}, 0, 0, 0, 0.0)
    with pytest.raises(UserError, match="no txt; expected jpg, txt, hint"):
        encode_pictures(base, {name: batch[name] for name in ("jpg", "hint")}, 0, 0, 0, 0.0)
    with pytest.raises(UserError, match="alike but for the channels"):
        encode_pictures(base, {**batch, "hint": torch.rand(2, 32, 32, 3)}, 0, 0, 0, 0.0)


def test_any_number_of_hint_channels_trains(base: Base) -> None:
    module = ControlNetModule(base, hint_channels=5)
    step = encode_pictures(base, {**pictures(), "hint": torch.rand(2, 64, 64, 5)}, 0, 0, 0, 0.0)
    module.loss(step).backward()
    assert module.control.zero_conv_middle.weight.grad.abs().sum() > 0  # type: ignore[union-attr]


def test_gradient_checkpointing_changes_no_gradient_and_keeps_less(base: Base) -> None:
    gradients, kept = [], []
    for does in (False, True):
        module = ControlNetModule(replace_decoder(base), sd_unlocked=True, gradient_checkpointing=does)
        tiny.randomised(module.control, seed=1)
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, to=sizes: to.append(x.nbytes) or x, lambda x: x):
            loss = module.loss(encode_pictures(base, pictures(), 0, 0, 0, 0.0))
        loss.backward()
        gradients.append([each.grad for each in module.trained().values()])
        kept.append(sum(sizes))
    for plain, again in zip(*gradients, strict=True):
        assert torch.allclose(plain, again, rtol=1e-4, atol=1e-7)
    assert kept[1] < 0.5 * kept[0]


def replace_decoder(base: Base) -> Base:
    """The same base, whose blocks no other test shares: checkpointing is set on them."""
    return replace(base, unet=copy.deepcopy(base.unet))


def test_an_unlocked_decoder_trains_at_its_own_rate_and_the_time_embedding_stays(base: Base) -> None:
    module = ControlNetModule(base, sd_unlocked=True)
    assert module.control.decoder is not None
    names = {name for name in module.trained() if name.startswith("decoder.")}
    assert names == {f"decoder.{name}" for name, _ in Decoder(base.unet).named_parameters() if "embed_time" not in name}
    assert not any(each.requires_grad for each in base.unet.parameters())


def test_a_locked_run_is_finished_unlocked_and_keeps_the_state_of_what_trained_before(
    base: Base, circles: Path, finished: Path, tmp_path: Path
) -> None:
    out = shutil.copytree(finished, tmp_path / "run")
    before = moments(checkpoint_path(out, 2))
    trained = train(config(circles, out, 3, ema_decay=0.9, sd_unlocked=True), base=base)
    after = moments(checkpoint_path(out, 3))
    assert len(after) > len(before) > 0
    # one step of Adam: 0.9 of the mean stays, unless a tenth of the new gradient outweighs it
    name = max(before, key=lambda each: before[each].norm())
    assert torch.nn.functional.cosine_similarity(before[name].flatten(), after[name].flatten(), 0) > 0.3
    own = {name: each for name, each in load_file(trained.control).items() if name.startswith("decoder.")}
    originals = Decoder(base.unet).state_dict()
    assert own.keys() == {f"decoder.{name}" for name in originals if not name.startswith("embed_time")}
    assert any(not torch.equal(each, originals[name.removeprefix("decoder.")]) for name, each in own.items())

    locked = train(config(circles, out, 4, ema_decay=0.9), base=base)  # locked again: what was trained stays as it is
    last = load_file(checkpoint_path(out, 3))  # not the average: it is what goes on being trained with
    kept = {name.rpartition("control.")[2]: each for name, each in last.items() if "/control.decoder." in name}
    found = load_file(locked.control)
    assert all(torch.equal(found[name], kept[name]) for name in own)
    assert len(moments(checkpoint_path(out, 4))) == len(before)


def test_an_average_is_what_a_run_saves_and_its_checkpoint_keeps_both(finished: Path) -> None:
    checkpoint = load_file(checkpoint_path(finished, 2))
    saved = load_file(finished / "control.safetensors")["zero_conv_middle.weight"]
    last = next(each for name, each in checkpoint.items() if name.endswith("control.zero_conv_middle.weight"))
    mean = next(each for name, each in checkpoint.items() if name.endswith("average.zero_conv_middle-weight"))
    assert torch.equal(saved, mean)
    assert not torch.equal(saved, last)


def test_a_training_goes_on_from_a_control_in_any_format(base: Base, circles: Path, tmp_path: Path) -> None:
    control = tiny.randomised(ControlNet.from_base(base.unet), seed=4)
    assert isinstance(control, ControlNet)
    save_control(tmp_path / "a.safetensors", control, ControlMetadata.of(base, control, "canny"))
    convert_control(tmp_path / "a.safetensors", tmp_path / "folder", "diffusers")
    for place in ("a.safetensors", "folder"):
        options = config(circles, tmp_path / "run", 1, control=str(tmp_path / place))
        module = ControlNetModule(base, **module_options(options, base, hint_channels=3))
        found = module.control.state_dict()
        assert all(torch.equal(found[name], each) for name, each in control.state_dict().items())
        assert len(module.trained()) == len(control.state_dict())
    with pytest.raises(UserError, match="takes hints of 3 channels, those of the data have 4"):
        module_options(options, base, hint_channels=4)


def test_generate_uses_the_decoder_that_was_trained_with_its_control(base: Base, unlocked: Path) -> None:
    control, _ = load_control(unlocked, base)
    assert control.decoder is not None
    hint = torch.rand(3, 64, 64)

    def picture(chosen: ControlNet) -> torch.Tensor:
        return torch.from_numpy(generate_pixels(base, ["red"], [0], [Unit(chosen, hint)], size_hw=(64, 64))).float()

    with_own = picture(control)
    decoder, control.decoder = control.decoder, None
    with_the_bases = picture(control)
    assert not torch.equal(with_own, with_the_bases)
    kept, base.decoder = base.decoder, decoder
    assert torch.equal(picture(control), with_own)
    base.decoder = kept


@pytest.mark.parametrize("to", ["controlnet", "ldm", "diffusers"])
def test_a_trained_decoder_is_exported_with_its_control(
    base: Base, base_folder: Path, unlocked: Path, tmp_path: Path, to: str
) -> None:
    out = tmp_path / {"controlnet": "c.safetensors", "ldm": "full.safetensors", "diffusers": "folder"}[to]
    convert_control(unlocked, out, to, base=base_folder)  # type: ignore[arg-type]
    wanted = load_control(unlocked, base)[0].decoder
    assert wanted is not None
    if to == "controlnet":
        assert load_file(out).keys() == load_file(unlocked).keys()
        return
    if to == "ldm":
        found = open_base(str(out), device="cpu", tokenizer=str(base_folder / "tokenizer")).decoder
    else:
        found = Decoder(diffusers.UNet2DConditionModel.from_pretrained(out / "unet"))
        diffusers.ControlNetModel.from_pretrained(out / "controlnet")
    for name, each in wanted.state_dict().items():
        assert torch.equal(found.state_dict()[name], each), name


@pytest.mark.parametrize("to", ["webui", "ldm"])
def test_a_format_without_room_for_the_decoder_is_refused(unlocked: Path, tmp_path: Path, to: str) -> None:
    with pytest.raises(UserError, match="say --base with that base"):
        convert_control(unlocked, tmp_path / "out.safetensors", to)  # type: ignore[arg-type]


def test_unlocked_controls_are_not_merged(unlocked: Path) -> None:
    with pytest.raises(UserError, match="which cannot be merged"):
        merge("0.5*a", {"a": open_control(unlocked)})


def test_a_finished_run_loads_in_diffusers_with_two_lines(base: Base, finished: Path, tmp_path: Path) -> None:
    assert run(["convert", str(finished), str(tmp_path / "folder")]) == 0
    theirs = diffusers.ControlNetModel.from_pretrained(tmp_path / "folder")
    ours, _ = load_control(finished, base)
    assert torch.equal(theirs.controlnet_mid_block.weight, ours.zero_conv_middle.weight)


def test_what_is_published_is_in_diffusers_layout_with_a_card_of_what_was_measured(
    base_folder: Path, finished: Path, tmp_path: Path
) -> None:
    folder = write_model(shutil.copytree(finished, tmp_path / "my-control"), str(base_folder))
    diffusers.ControlNetModel.from_pretrained(folder)
    card = (folder / "README.md").read_text()
    for part in (
        "library_name: diffusers",
        "# my-control",
        "**circle**",
        "held-out loss",
        "| pairs | ",
        "| seed | 0 |",
    ):
        assert part in card, part
    pictures_of_card = re.findall(r"\]\(([a-z]+\.png)\)", card)
    assert pictures_of_card == ["samples.png", "curve.png"]
    assert all((folder / name).is_file() for name in pictures_of_card)
