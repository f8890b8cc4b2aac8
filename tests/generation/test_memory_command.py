"""`controlnet generate` with little memory, and what it says of memory and of strange hints."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tiny_folders
from controlnet.annotators.canny import Canny
from controlnet.annotators.hint_file import description, encode
from controlnet.base import open_base
from controlnet.checkpoints.control_file import ControlMetadata, save_control
from controlnet.cli.main import run
from controlnet.generation.opening import Opener, strange_hints
from controlnet.generation.recipe import Recipe, UnitChoice
from tiny_generation import grey_levels_apart, loud


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base, controls for two conditions, and a hint that says what it is."""
    home = tmp_path_factory.mktemp("memory")
    base = open_base(tiny_folders.save_tiny_base(home / "base"), "cpu")
    control = loud(base)
    for condition, polarity in (("canny", "light on dark"), ("depth", "near is light"), ("unknown", "unknown")):
        metadata = ControlMetadata.of(base, control, condition, polarity=polarity)
        save_control(home / f"{condition}.safetensors", control, metadata)
    lines = np.zeros((64, 64, 3), np.uint8)
    lines[30:33] = 255
    (home / "lines.png").write_bytes(encode(lines, json.dumps(description(Canny()))))
    return home


def made(home: Path, out: Path, *options: str, control: str = "canny") -> int:
    fixed = ["--base", str(home / "base"), "--out", str(out), "--device", "cpu", "--steps", "2", "--prompt", "red"]
    unit = ["--control", str(home / f"{control}.safetensors"), "--hint", str(home / "lines.png")]
    return run(["generate", *fixed, *unit, *options])


def machine(path: Path) -> dict[str, str]:
    return json.loads(Image.open(path).text["controlnet"])["machine"]


def test_a_limit_says_what_it_chose_and_changes_no_pixel(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert made(home, tmp_path / "plenty") == 0
    assert "memory" not in capsys.readouterr().err
    assert made(home, tmp_path / "limit", "--memory-limit", "1GB") == 0
    assert "memory: all models on the device: about" in capsys.readouterr().err
    assert made(home, tmp_path / "blocks", "--offload", "blocks", "--vae", "sliced") == 0
    plenty = np.array(Image.open(tmp_path / "plenty" / "0.png"))
    for name in ("limit", "blocks"):
        assert np.array_equal(plenty, np.array(Image.open(tmp_path / name / "0.png")))
        assert machine(tmp_path / name / "0.png") == machine(tmp_path / "plenty" / "0.png")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--memory-limit", "1MB"], "too little"),
        (["--memory-limit", "8"], "expected a size such as 8GB"),
    ],
)
def test_a_limit_that_cannot_be_kept_is_an_error_before_any_work(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
):
    assert made(home, tmp_path / "out", *options) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_eight_bits_are_noted_with_the_picture_and_repeated(home: Path, tmp_path: Path):
    assert made(home, tmp_path) == 0
    assert made(home, tmp_path, "--storage", "8bit") == 0
    full, stored = (np.array(Image.open(tmp_path / name)) for name in ("0.png", "0-2.png"))
    assert 0 < np.abs(full.astype(float) - stored).mean() < 4
    assert "storage" not in machine(tmp_path / "0.png")
    assert machine(tmp_path / "0-2.png")["storage"] == "8bit"
    assert run(["generate", "--from", str(tmp_path / "0-2.png"), "--out", str(tmp_path / "again")]) == 0
    assert grey_levels_apart(Image.open(tmp_path / "again" / "0-2.png"), stored) == 0


def test_a_hint_of_another_kind_is_said_and_used(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert made(home, tmp_path, control="depth") == 0
    said = capsys.readouterr().err
    assert "its condition is canny, the control" in said
    assert "its polarity is light on dark" in said
    assert made(home, tmp_path / "fits") == 0
    assert "its condition" not in capsys.readouterr().err


def test_what_is_not_said_or_not_known_is_no_mismatch(home: Path, tmp_path: Path):
    Image.new("RGB", (64, 64)).save(tmp_path / "plain.png")

    def strange(control: str, hint: Path) -> list[str]:
        unit = UnitChoice(control=str(home / f"{control}.safetensors"), hint=str(hint))
        return strange_hints([Recipe(prompt="", units=(unit,))])

    assert strange("unknown", home / "lines.png") == strange("depth", tmp_path / "plain.png") == []
    blue = json.dumps({**description(Canny()), "channel_order": "BGR"})
    (tmp_path / "blue.png").write_bytes(encode(np.zeros((8, 8, 3), np.uint8), blue))
    assert "its channel order is BGR" in strange("canny", tmp_path / "blue.png")[0]


def test_a_pictures_inputs_are_the_bases_hash_and_the_files_sha_256(home: Path):
    unit = UnitChoice(control=str(home / "canny.safetensors"), hint=str(home / "lines.png"))
    recipe = Recipe(prompt="", base=str(home / "base"), units=(unit,))
    expected = {
        str(home / name): hashlib.sha256((home / name).read_bytes()).hexdigest()
        for name in ("canny.safetensors", "lines.png")
    }
    inputs = Opener(recipe, "cpu", "float32").inputs(recipe)
    assert inputs == {str(home / "base"): open_base(home / "base", "cpu").hash(), **expected}


@pytest.mark.slow
def test_compiled_networks_paint_the_same_picture_and_it_is_noted(home: Path, tmp_path: Path):
    single = ("--dtype", "float32")  # rounding to bfloat16 alone, at other places, moves pixels of so wild a base by 30
    assert made(home, tmp_path / "plain", *single) == made(home, tmp_path / "compiled", "--compile", *single) == 0
    plain, compiled = (np.array(Image.open(tmp_path / name / "0.png")).astype(int) for name in ("plain", "compiled"))
    assert np.abs(plain - compiled).max() <= 2
    assert "compiled" in machine(tmp_path / "compiled" / "0.png")


def test_compiled_networks_do_not_move(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert made(home, tmp_path / "out", "--compile", "--offload", "blocks") == 2
    assert "choose one of them" in capsys.readouterr().err
