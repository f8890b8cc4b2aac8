"""`controlnet generate`: files, names, settings inside, repetition, errors for people."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import tiny
import tiny_folders
from controlnet.annotators.canny import Canny
from controlnet.base import open_base
from controlnet.checkpoints.control_file import ControlMetadata, load_control, save_control
from controlnet.cli.main import run
from controlnet.control import ControlNet
from controlnet.generation.lora import load_lora
from controlnet.generation.pipeline import carry_out, generate
from controlnet.generation.prompts import PRESETS
from controlnet.generation.unit import Unit
from tiny_generation import grey_levels_apart

SMALL = ["--width", "64", "--height", "64"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base, a run that trained a control for it, and rings to obey."""
    home = tmp_path_factory.mktemp("generate")
    base = open_base(tiny_folders.save_tiny_base(home / "base"), device="cpu")
    control = ControlNet.from_base(base.unet)
    tiny.randomised(control)
    save_control(home / "run" / "control.safetensors", control, ControlMetadata.of(base, control, "circle"))
    Image.new("RGB", (72, 64), "white").save(home / "ring.png")
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    (home / "hints").mkdir()
    for number in range(3):
        Image.fromarray(np.roll(noise, number * 20, axis=0)).save(home / "hints" / f"{number}.png")
    return home


def generated(home: Path, out: Path, *options: str) -> int:
    fixed = ["--base", str(home / "base"), "--out", str(out), "--device", "cpu"]
    fixed += [] if {"--dtype", "--from"} & set(options) else ["--dtype", "float32"]  # on any CPU what the library takes
    prompt = [] if {"--prompt", "--jobs", "--from", "--config"} & set(options) else ["--prompt", "red"]
    steps = [] if {"--steps", "--from", "--config"} & set(options) else ["--steps", "2"]
    return run(["generate", *fixed, *prompt, *steps, *options])


def recipe(path: Path) -> dict[str, object]:
    return json.loads(Image.open(path).text["controlnet"])["recipe"]


def pixels(path: Path) -> np.ndarray:
    return np.array(Image.open(path))


def test_pictures_are_named_by_their_seeds_and_printed(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert generated(home, tmp_path / "out", "--seed", "7", "--count", "3", "--batch-size", "2", *SMALL) == 0
    expected = [tmp_path / "out" / f"{seed}.png" for seed in (7, 8, 9)]
    assert capsys.readouterr().out.split() == [str(path) for path in expected]
    pictures = generate(open_base(home / "base", "cpu"), "red", steps=2, seed=7, count=3, size=(64, 64))
    for path, picture in zip(expected, pictures, strict=True):
        assert grey_levels_apart(Image.open(path), picture) <= 1


def test_a_run_and_a_hint_control_the_picture(home: Path, tmp_path: Path):
    assert generated(home, tmp_path, "--control", str(home / "run"), "--hint", str(home / "ring.png")) == 0
    alone = generate(open_base(home / "base", "cpu"), "red", steps=2, size=(72, 64))[0]
    assert pixels(tmp_path / "0.png").shape == (64, 72, 3)
    assert grey_levels_apart(pixels(tmp_path / "0.png"), alone) > 5


def test_every_option_of_units_and_sampling_reaches_the_picture(home: Path, tmp_path: Path):
    """The command against the library, with everything said."""
    ring, noise, run_folder = home / "ring.png", home / "hints" / "0.png", home / "run"
    weights = [0.1 * layer for layer in range(13)]
    base = open_base(home / "base", "cpu")
    control, _ = load_control(run_folder, base)
    units = [
        Unit(control, str(noise), 0.7, 0.0, 0.7, [1, 0.5, 0.25], weights, str(noise), "control", "stretch"),
        Unit(control, str(ring), 0.5, mode="prompt", resize="fill"),
    ]
    said = [
        f"control={run_folder},hint={noise},strength=0.7,end=0.7,schedule=1:0.5:0.25,mode=control,resize=stretch,"
        f"layer_weights={':'.join(map(str, weights))},mask={noise}",
        f"control={run_folder},hint={ring},strength=0.5,mode=prompt,resize=fill",
    ]
    expected = generate(
        base,
        "a (bee:1.2)",
        units,
        steps=4,
        guidance_scale=[3, 4, 5],
        guidance_interval=(0.0, 0.7),
        seed=3,
        eta=0.5,
        negative_prompt="blue",
        added_prompt="red",
        prompt_weights=False,
        clip_skip=2,
        image=str(noise),
        mask=str(home / "hints" / "1.png"),
        image_strength=0.9,
        size=(64, 64),
    )
    options = ["--unit", said[0], "--unit", said[1], "--steps", "4", "--guidance-scale", "3", "4", "5", *SMALL]
    options += ["--guidance-interval", "0", "0.7", "--seed", "3", "--eta", "0.5", "--negative-prompt", "blue"]
    options += ["--added-prompt", "red", "--no-prompt-weights", "--clip-skip", "2", "--image", str(noise)]
    options += ["--mask", str(home / "hints" / "1.png"), "--image-strength", "0.9", "--prompt", "a (bee:1.2)"]
    assert generated(home, tmp_path, *options) == 0
    assert np.array_equal(pixels(tmp_path / "3.png"), expected.pixels_nhwc[0])


def test_pictures_that_are_there_are_not_made_again_and_none_is_overwritten(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    options = ["--count", "2", *SMALL]
    assert generated(home, tmp_path, *options) == 0
    first = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert generated(home, tmp_path, *options, "--guidance-scale", "2") == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0-2.png", "0.png", "1-2.png", "1.png"]
    monkeypatch.setattr("controlnet.generation.production.carry_out", None)
    assert generated(home, tmp_path, *options) == 0
    assert generated(home, tmp_path, *options, "--guidance-scale", "2") == 0
    assert {path: path.read_bytes() for path in first} == first


def test_a_changed_input_makes_another_picture(home: Path, tmp_path: Path):
    hint = tmp_path / "hint.png"
    for number in (0, 1):
        hint.write_bytes((home / "hints" / f"{number}.png").read_bytes())
        assert generated(home, tmp_path / "out", "--control", str(home / "run"), "--hint", str(hint)) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["0-2.png", "0.png"]


def test_a_picture_carries_what_makes_it_again(home: Path, tmp_path: Path):
    options = ["--seed", "5", "--count", "2", "--scheduler", "unipc"]
    assert generated(home, tmp_path, *options, *SMALL) == 0
    said = {"prompt": "red", "seed": 6, "steps": 2, "scheduler": "unipc", "width": 64, "base": str(home / "base")}
    assert recipe(tmp_path / "6.png").items() >= said.items()


@pytest.mark.parametrize("scheduler", ["ddim", "euler_a"])
def test_a_picture_of_a_batch_under_control_is_repeated_bit_for_bit(home: Path, tmp_path: Path, scheduler: str):
    unit = f"control={home / 'run'},image={home / 'ring.png'},annotator=canny,annotator.low=50,end=0.5"
    options = ["--unit", unit, "--seed", "5", "--count", "3", "--scheduler", scheduler, "--preset", "original"]
    assert generated(home, tmp_path / "first", *options, "--batch-size", "3") == 0
    for seed in (5, 6, 7):
        assert (
            run(["generate", "--from", str(tmp_path / "first" / f"{seed}.png"), "--out", str(tmp_path / "again")]) == 0
        )
    for seed in (5, 6, 7):
        first, again = ((tmp_path / folder / f"{seed}.png").read_bytes() for folder in ("first", "again"))
        assert first == again


def test_options_beside_from_change_the_picture_in_them_alone(home: Path, tmp_path: Path):
    assert generated(home, tmp_path / "first", "--control", str(home / "run"), "--hint", str(home / "ring.png")) == 0
    first = tmp_path / "first" / "0.png"
    assert generated(home, tmp_path / "again", "--from", str(first), "--strength", "0.25", "--seed", "4") == 0
    changed = recipe(first)
    changed["seed"] = 4
    changed["units"][0]["strength"] = 0.25
    assert recipe(tmp_path / "again" / "4.png") == changed


def test_what_has_changed_since_a_picture_was_made_is_said(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    hint = tmp_path / "hint.png"
    hint.write_bytes((home / "hints" / "0.png").read_bytes())
    assert generated(home, tmp_path, "--control", str(home / "run"), "--hint", str(hint)) == 0
    hint.write_bytes((home / "hints" / "1.png").read_bytes())
    assert run(["generate", "--from", str(tmp_path / "0.png"), "--out", str(tmp_path / "again")]) == 0
    told = " ".join(capsys.readouterr().err.split())
    assert "may differ" in told
    assert f"{hint}: " in told


def test_a_file_of_options_is_as_good_as_flags_which_prevail(home: Path, tmp_path: Path):
    options = ["--unit", f"control={home / 'run'},hint={home / 'hints' / '0.png'},end=0.5,schedule=1:0.5"]
    assert generated(home, tmp_path / "flags", *options, "--guidance-scale", "2", "--seed", "9") == 0
    (home / "options.toml").write_text(
        'prompt = "red"\nsteps = 2\nguidance_scale = 2\nseed = 1\n'
        '[[units]]\ncontrol = "run"\nhint = "hints/0.png"\nend = 0.5\nschedule = [1, 0.5]\n'
    )
    assert generated(home, tmp_path / "file", "--config", str(home / "options.toml"), "--seed", "9") == 0
    assert recipe(tmp_path / "file" / "9.png") == recipe(tmp_path / "flags" / "9.png")


def test_a_preset_is_what_the_original_adds(home: Path, tmp_path: Path):
    assert generated(home, tmp_path, "--preset", "original-1.1", *SMALL) == 0
    assert recipe(tmp_path / "0.png").items() >= PRESETS["original-1.1"].items()


def test_loras_are_merged_as_heavily_as_is_said(home: Path, tmp_path: Path):
    base, layer = open_base(home / "base", "cpu"), "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    out, into = base.unet.get_submodule(layer).weight.shape
    noise = torch.Generator().manual_seed(0)
    down, up = torch.randn(4, into, generator=noise), torch.randn(out, 4, generator=noise)
    save_file({f"unet.{layer}.lora_A.weight": down, f"unet.{layer}.lora_B.weight": up}, tmp_path / "a.safetensors")
    before = generate(base, "red", steps=2, size=(64, 64))
    load_lora(base, tmp_path / "a.safetensors", 0.5)
    merged = generate(base, "red", steps=2, size=(64, 64))
    assert generated(home, tmp_path / "out", "--lora", f"{tmp_path / 'a.safetensors'}:0.5", *SMALL) == 0
    assert np.array_equal(pixels(tmp_path / "out" / "0.png"), merged.pixels_nhwc[0])
    assert grey_levels_apart(before[0], merged[0]) > 0


def test_one_annotator_serves_all_batches(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """It keeps its network, which must not be read for every batch."""
    asked: list[int] = []
    annotate = Canny.annotate
    monkeypatch.setattr(Canny, "annotate", lambda self, rgb: asked.append(id(self)) or annotate(self, rgb))
    unit = f"control={home / 'run'},annotator=canny"
    options = ["--jobs", str(home / "hints"), "--unit", unit, "--batch-size", "1", "--prompt", "red"]
    assert generated(home, tmp_path, *options) == 0
    assert len(asked) == 3
    assert len(set(asked)) == 1


def test_everything_wrong_in_a_file_of_options_is_told(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "options.toml").write_text('stops = 3\nseed = "x"\nconfig = "y"\n[[units]]\nhint = "a.png"\n')
    assert generated(home, tmp_path / "out", "--config", str(tmp_path / "options.toml")) == 2
    told = capsys.readouterr().err
    for message in ("no 'stops'", "seed is 'x'", "config belongs on the command line", "unit 1: no control"):
        assert message in told


def test_a_folder_of_hints_gives_a_picture_for_each_and_a_sheet(home: Path, tmp_path: Path):
    options = ["--jobs", str(home / "hints"), "--control", str(home / "run"), "--prompt", "red", "--steps", "2"]
    assert generated(home, tmp_path / "out", *options, "--count", "2", "--grid", str(tmp_path / "grid.png")) == 0
    names = [f"{hint}-{seed}.png" for hint in range(3) for seed in (0, 1)]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    base = open_base(home / "base", "cpu")
    unit = Unit(load_control(home / "run", base)[0], home / "hints" / "1.png")
    expected = generate(base, "red", [unit], steps=2, seed=1)[0]
    assert grey_levels_apart(pixels(tmp_path / "out" / "1-1.png"), expected) <= 1
    sheet = pixels(tmp_path / "grid.png")
    assert sheet.shape == (3 * 68 + 4, 3 * 68 + 4, 3)
    assert np.array_equal(sheet[72:136, 4:68], pixels(home / "hints" / "1.png"))
    assert np.array_equal(sheet[72:136, 140:204], pixels(tmp_path / "out" / "1-1.png"))


def test_an_interrupted_batch_of_jobs_goes_on_to_the_same_pictures(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Ctrl-C as the second batch begins; and a picture of the first is lost besides."""
    options = ["--count", "4", "--batch-size", "2", *SMALL]
    assert generated(home, tmp_path / "whole", *options) == 0

    def interrupt(request: object, *others: object) -> object:
        if request.seeds[0] == 2:  # type: ignore[attr-defined]
            raise KeyboardInterrupt
        return carry_out(request, *others)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr("controlnet.generation.production.carry_out", interrupt)
        assert generated(home, tmp_path / "cut", *options) == 130
    assert sorted(path.name for path in (tmp_path / "cut").iterdir()) == ["0.png", "1.png"]
    (tmp_path / "cut" / "1.png").unlink()
    assert generated(home, tmp_path / "cut", *options) == 0
    for seed in range(4):
        one, other = (pixels(tmp_path / folder / f"{seed}.png") for folder in ("whole", "cut"))
        assert np.array_equal(one, other)


@pytest.mark.parametrize(
    ("options", "messages"),
    [
        (["--control", "{home}/run"], ["no hint"]),
        (["--hint", "{home}/ring.png"], ["--hint is given without --control"]),
        (["--width", "64"], ["--width is given without --height"]),
        (["--count", "0", "--batch-size", "-1"], ["--count 0", "--batch-size -1"]),
        (["--control", "{home}/base", "--hint", "no.png"], ["in this folder", "no.png"]),
        (["--width", "60", "--height", "64"], ["a picture of 60x64", "multiples of 8"]),
        (["--steps", "0", "--scheduler", "plms"], ["0 steps", "'plms'"]),
        (["--base", "nowhere"], ["nor a hub id"]),
        (["--lora", "no.safetensors:0.5", "--preset", "best"], ["preset 'best'"]),
        (["--lora", "no.safetensors:0.5", "--image", "no.png"], ["LoRA no.safetensors: no such file", "no.png"]),
        (["--unit", "control=x,strenght=1", "--unit", "y"], ["no 'strenght'", "unit 2: 'y': expected NAME=VALUE"]),
        (
            ["--unit", "control={home}/run,image={home}/ring.png,annotator=cany", "--safety", "block"],
            ["did you mean canny?", "no safety checker"],
        ),
        (
            ["--unit", "control={home}/run,image={home}/ring.png,annotator=canny,annotator.low=much,annotator.x=1"],
            ["annotator.low is 'much'; expected a whole number", "has no 'x'"],
        ),
        (["--unit", "control={home}/run,hint={home}/ring.png,start=1", *SMALL], ["start", "expected 0 <= start"]),
        (["--from", "{home}/ring.png"], ["no settings of ours"]),
        (["--from", "{home}/no.png"], ["no such file"]),
        (["--config", "{home}/no.toml"], ["no.toml: No such file"]),
        (["--jobs", "{home}/no.csv", "--grid", "a.jpg"], ["no.csv: No such file", "a.jpg"]),
    ],
)
def test_what_cannot_be_done_is_told_without_a_traceback(
    home: Path, tmp_path: Path, options: list[str], messages: list[str], capsys: pytest.CaptureFixture[str]
):
    assert generated(home, tmp_path, *[option.format(home=home) for option in options]) == 2
    told = capsys.readouterr().err
    assert [message for message in messages if message not in told] == []
    assert "Traceback" not in told
    assert list(tmp_path.iterdir()) == []
