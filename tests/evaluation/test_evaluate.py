"""`controlnet evaluate` from outside, on a tiny base."""

import json
from pathlib import Path

import pytest
from PIL import Image

from controlnet.cli.main import run


def arguments(base: Path, control: Path, data: Path, out: Path, *others: str) -> list[str]:
    words = ["evaluate", base, control, data, "--out", out, "--count", "3", "--steps", "2", "--device", "cpu", *others]
    return [str(word) for word in words]


def test_it_measures_with_and_without_and_keeps_the_pictures(
    base_folder: Path, control: Path, circles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = arguments(base_folder, control, circles, tmp_path / "out")
    assert run(asked) == 0
    printed = capsys.readouterr().out
    assert "IoU" in printed
    assert printed.splitlines()[-1] == str(tmp_path / "out" / "evaluation.json")
    figures = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert figures["pictures"] == 3
    assert set(figures["figures"]["IoU"]) == {"with", "without"}
    pictures = sorted((tmp_path / "out").glob("with*/*.png"))
    assert len(pictures) == 6
    assert pictures[0].read_bytes() != (tmp_path / "out" / "without" / pictures[0].name).read_bytes()
    assert Image.open(tmp_path / "out" / "grid.png").size[0] > 4 * 64

    before = {path: path.stat().st_mtime_ns for path in pictures}
    bytes_before = pictures[1].read_bytes()
    pictures[1].unlink()
    assert run(asked) == 0
    assert pictures[1].read_bytes() == bytes_before, "a picture made alone differs from the same made among others"
    assert all(path.stat().st_mtime_ns == before[path] for path in pictures if path != pictures[1])
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text()) == figures


def test_a_folder_with_other_pictures_is_refused_by_what_differs(
    base_folder: Path, control: Path, circles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments(base_folder, control, circles, tmp_path, "--count", "1")) == 0
    assert run(arguments(base_folder, control, circles, tmp_path, "--count", "1", "--seed", "7")) == 2
    assert "seed: 0 there, 7 now" in capsys.readouterr().err
    assert len(list(tmp_path.glob("with*/*.png"))) == 2


def test_wrong_numbers_and_weights_that_are_none_end_before_a_picture_is_made(
    base_folder: Path, control: Path, circles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run(arguments(base_folder, control, circles, out, "--batch-size", "0")) == 2
    assert "--batch-size is 0" in capsys.readouterr().err
    assert run(arguments(base_folder, control, circles, out, "--inception", str(tmp_path / "none.pth"))) == 2
    assert run(arguments(base_folder, control, circles, out, "--clip", str(tmp_path))) == 2
    assert not out.exists()


def test_a_condition_without_a_measure_says_so(
    base_folder: Path, control: Path, circles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments(base_folder, control, circles, tmp_path, "--count", "1", "--condition", "mood")) == 0
    assert "no measure for the condition 'mood'" in capsys.readouterr().out
