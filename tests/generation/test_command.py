"""`controlnet generate`: files, names, settings inside, errors for people."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tiny
import tiny_folders
from controlnet.base import open_base
from controlnet.checkpoints.control_file import ControlMetadata, save_control
from controlnet.cli.main import run
from controlnet.control import ControlNet
from controlnet.generation.pipeline import generate


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base, a run that trained a control for it, and a ring to obey."""
    home = tmp_path_factory.mktemp("generate")
    base = open_base(tiny_folders.save_tiny_base(home / "base"), device="cpu")
    control = ControlNet.from_base(base.unet)
    tiny.randomised(control)
    save_control(home / "run" / "control.safetensors", control, ControlMetadata.of(base, control, "circle"))
    Image.new("RGB", (72, 64), "white").save(home / "ring.png")
    return home


def generated(home: Path, out: Path, *options: str) -> int:
    fixed = ["--base", str(home / "base"), "--out", str(out), "--prompt", "red", "--steps", "2", "--device", "cpu"]
    return run(["generate", *fixed, *options])


def test_pictures_are_named_by_their_seeds_and_printed(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    options = ["--seed", "7", "--count", "3", "--batch-size", "2", "--width", "64", "--height", "64"]
    assert generated(home, tmp_path / "out", *options) == 0
    expected = [tmp_path / "out" / f"{seed}.png" for seed in (7, 8, 9)]
    assert capsys.readouterr().out.split() == [str(path) for path in expected]
    pictures = generate(open_base(home / "base", "cpu"), "red", steps=2, seed=7, count=3, size=(64, 64))
    for path, picture in zip(expected, pictures, strict=True):
        apart = np.array(Image.open(path)).astype(int) - np.array(picture)
        assert abs(apart).max() <= 1


def test_a_run_and_a_hint_control_the_picture(home: Path, tmp_path: Path):
    assert generated(home, tmp_path, "--control", str(home / "run"), "--hint", str(home / "ring.png")) == 0
    picture = np.array(Image.open(tmp_path / "0.png"))
    base = open_base(home / "base", "cpu")
    alone = np.array(generate(base, "red", steps=2, size=(72, 64))[0])
    assert picture.shape == (64, 72, 3)
    assert abs(picture.astype(int) - alone).max() > 5


def test_no_picture_is_ever_overwritten(home: Path, tmp_path: Path):
    options = ["--width", "64", "--height", "64"]
    for _ in range(3):
        assert generated(home, tmp_path, *options) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0-2.png", "0-3.png", "0.png"]


def test_a_picture_carries_what_makes_it_again(home: Path, tmp_path: Path):
    options = ["--seed", "5", "--count", "2", "--scheduler", "unipc", "--width", "64", "--height", "64"]
    assert generated(home, tmp_path, *options) == 0
    settings = json.loads(Image.open(tmp_path / "6.png").text["controlnet"])
    told = {name: settings[name] for name in ("prompt", "seed", "count", "steps", "scheduler", "width", "base")}
    assert told == {
        "prompt": "red",
        "seed": 6,
        "count": 1,
        "steps": 2,
        "scheduler": "unipc",
        "width": 64,
        "base": str(home / "base"),
    }


@pytest.mark.parametrize(
    ("options", "messages"),
    [
        (["--control", "{home}/run"], ["--control is given without --hint"]),
        (["--hint", "{home}/ring.png"], ["--hint is given without --control"]),
        (["--width", "64"], ["--width is given without --height"]),
        (["--count", "0", "--batch-size", "-1"], ["--count 0", "--batch-size -1"]),
        (["--control", "{home}/base", "--hint", "no.png"], ["in this folder", "no.png"]),
        (["--width", "60", "--height", "64"], ["a picture of 60x64", "multiples of 8"]),
        (["--steps", "0", "--scheduler", "plms"], ["0 steps", "'plms'"]),
        (["--base", "nowhere"], ["nor a hub id"]),
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


def test_an_interruption_keeps_the_pictures_that_are_done(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Ctrl-C as the second picture begins."""

    def interrupt(*arguments: object, **options: object) -> object:
        if options["seed"] == 1:
            raise KeyboardInterrupt
        return generate(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("controlnet.generation.pipeline.generate", interrupt)
    options = ["--count", "2", "--batch-size", "1", "--width", "64", "--height", "64"]
    assert generated(home, tmp_path, *options) == 130
    assert [path.name for path in tmp_path.iterdir()] == ["0.png"]
