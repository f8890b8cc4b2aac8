import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from controlnet.data.check import Report, check
from controlnet.data.circles import write_circles
from controlnet.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_circles(tmp_path / "set", count=12, size=32, processes=1)
    return tmp_path / "set"


def line(number: int) -> str:
    return json.dumps({"source": f"source/{number}.png", "target": f"target/{number}.png", "prompt": f"pair {number}"})


def set_lines(folder: Path, changed: dict[int, str]) -> None:
    """Replace lines, counted from 1, of a data set of 12."""
    lines = [changed.get(number + 1, line(number)) for number in range(12)]
    (folder / "prompt.json").write_text("\n".join(lines) + "\n", encoding="utf-8")


def told(report: Report) -> tuple[list[str], list[str]]:
    return [str(finding) for finding in report.errors], [str(finding) for finding in report.warnings]


def test_a_clean_set_of_200_has_nothing_to_report(tmp_path: Path) -> None:
    write_circles(tmp_path / "clean", count=200, size=64, processes=1)
    report = check(tmp_path / "clean")
    assert (report.pairs, *told(report)) == (200, [], [])


def test_every_defect_is_reported_at_once_with_its_line(folder: Path) -> None:
    set_lines(
        folder, {2: "no JSON at all", 4: json.dumps({"source": "source/3.png"}), 6: line(5).replace("pair 5", "  ")}
    )
    (folder / "source" / "2.png").unlink()
    (folder / "target" / "4.png").write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
    Image.new("RGB", (32, 40), "red").save(folder / "target" / "6.png")
    for kind in ("source", "target"):
        Image.open(folder / kind / "0.png").save(folder / kind / "7.png", compress_level=9)  # other bytes, same pixels
    errors, warnings = told(check(folder))
    assert [error.split(":")[0] for error in errors] == [f"line {number}" for number in (2, 3, 4, 5, 6, 7, 8)]
    for error, expected in zip(
        errors,
        ("no JSON", "source/2.png is missing", "lacks target, prompt", "target/4.png: ", "the prompt is empty",
         "the hint source/6.png has 32x32 pixels, the picture target/6.png 32x40", "the same pair as in line 1"),
        strict=True,
    ):  # fmt: skip
        assert expected in error
    assert warnings == []


def test_a_line_may_have_several_defects(folder: Path) -> None:
    set_lines(folder, {3: json.dumps({"source": "source/x.png", "target": "target/y.png", "prompt": ""})})
    errors, _ = told(check(folder))
    assert errors == [
        "line 3: the prompt is empty",
        "line 3: target/y.png is missing",
        "line 3: source/x.png is missing",
    ]


def test_the_same_files_twice_are_one_duplicate_even_if_they_are_missing(folder: Path) -> None:
    set_lines(folder, {5: line(1), 9: line(1)})
    assert told(check(folder))[0] == ["line 5: the same pair as in line 2", "line 9: the same pair as in line 2"]
    (folder / "source" / "1.png").unlink()
    assert "line 5: the same pair as in line 2" in told(check(folder))[0]


def test_one_hint_with_two_pictures_is_no_duplicate(folder: Path) -> None:
    set_lines(folder, {5: line(4).replace("source/4", "source/1")})
    assert told(check(folder)) == ([], [])


def test_an_empty_hint_and_a_far_size_are_warnings(folder: Path) -> None:
    Image.new("RGB", (32, 32), (0, 40, 0)).save(folder / "source" / "3.png")
    for kind, offset in (("source", 0), ("target", 1)):
        noise = np.random.default_rng(offset).integers(0, 256, (32, 80, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / kind / "8.png")
    assert told(check(folder)) == (
        [],
        [
            "line 4: the hint source/3.png is empty",
            "line 9: the picture target/8.png has 80x32 pixels, the median 32x32",
        ],
    )


def test_a_folder_that_is_no_data_set_has_no_report(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no prompt\.json"):
        check(tmp_path)


@pytest.mark.parametrize(
    ("changed", "code", "said"),
    [
        ({}, 0, "12 pairs, 0 defects, 1 warnings"),
        ({12: "{"}, 1, "line 12: no JSON"),
        ({1: line(0), 12: line(0)}, 1, "line 12: the same pair as in line 1"),
    ],
)
def test_the_command_ends_with_the_documented_code(folder: Path, changed: dict[int, str], code: int, said: str) -> None:
    set_lines(folder, changed)
    Image.new("RGB", (32, 32)).save(folder / "source" / "3.png")
    done = run_check(folder)
    assert done.returncode == code
    assert said in done.stdout
    assert "line 4: warning: the hint source/3.png is empty" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("12 pairs, ")


def test_the_command_refuses_a_folder_that_is_no_data_set(tmp_path: Path) -> None:
    done = run_check(tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def run_check(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "controlnet", "data", "check", str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=False)
