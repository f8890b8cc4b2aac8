import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from controlnet.data.circles import THICKNESSES, draw_circle, ring, write_circles
from controlnet.data.colours import NAMES
from controlnet.data.shapes import Scene, mask
from controlnet.errors import UserError
from controlnet.images import decode

SIZE = 64


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rows(folder: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (folder / "prompt.json").read_text().splitlines()]


@pytest.fixture(scope="module")
def circles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "circles"
    write_circles(folder, count=120, size=SIZE, seed=3, processes=1)
    return folder


def test_one_process_and_two_write_the_same_bytes(circles: Path, tmp_path: Path) -> None:
    write_circles(tmp_path / "two", count=120, size=SIZE, seed=3, processes=2)
    assert contents(tmp_path / "two") == contents(circles)


def test_another_seed_draws_other_pairs(circles: Path, tmp_path: Path) -> None:
    write_circles(tmp_path / "other", count=10, size=SIZE, seed=4, processes=1)
    assert not any((tmp_path / "other" / row["target"]).read_bytes() == (circles / row["target"]).read_bytes()
                   for row in rows(tmp_path / "other"))  # fmt: skip


def test_prompts_name_two_of_the_140_colours_in_words_and_the_picture_has_them(circles: Path) -> None:
    from controlnet.data.colours import RGB

    for number, row in enumerate(rows(circles)):
        assert (row["source"], row["target"]) == (f"source/{number}.png", f"target/{number}.png")
        colour, background = row["prompt"].removesuffix(" background").split(" circle with ")
        assert {colour, background} <= set(NAMES)
        shown = {tuple(pixel) for pixel in decode(circles / row["target"]).reshape(-1, 3).tolist()}
        assert {RGB[colour], RGB[background]} <= shown


@pytest.mark.parametrize("size", [64, 128, 512])
def test_the_ring_lies_on_the_edge_of_its_disc(size: int) -> None:
    square = np.ones((3, 3), np.uint8)
    for number in range(12):
        scene, thickness = draw_circle(0, number)
        disc = np.uint8(mask(scene, size) > 127)
        line = np.uint8(ring(scene, size, thickness)[..., 0] > 127)
        two_inside_to_one_outside = cv2.dilate(disc, square) - cv2.erode(disc, square, iterations=2)
        outermost = disc - cv2.erode(disc, square)
        within_frame = np.s_[2:-2, 2:-2]  # at the frame, erosion does not see the outside that is cut off
        assert (line <= two_inside_to_one_outside)[within_frame].all(), number
        assert (outermost <= cv2.dilate(line, square)).all(), number


@pytest.mark.parametrize("thickness", THICKNESSES)
def test_a_ring_is_as_thick_as_asked(thickness: int) -> None:
    scene = Scene("circle", "cyan", "pink", 0.5, 0.47, 0.3)
    hint = ring(scene, 512, thickness)
    assert hint.shape == (512, 512, 3)
    assert hint.dtype == np.uint8
    assert hint[..., 0].sum() / 255 == pytest.approx(thickness * 2 * np.pi * 0.3 * 512, rel=0.01)


def test_circles_have_all_sizes_both_thicknesses_and_some_are_cut_by_the_border() -> None:
    drawn = [draw_circle(0, number) for number in range(500)]
    radii = [scene.radius for scene, _ in drawn]
    cut = [not all(scene.radius < at < 1 - scene.radius for at in (scene.x, scene.y)) for scene, _ in drawn]
    assert min(radii) < 0.12
    assert max(radii) > 0.38
    assert {thickness for _, thickness in drawn} == set(THICKNESSES)
    assert 0.1 < np.mean(cut) < 0.7


def test_an_interrupted_run_continues_and_ends_as_an_undisturbed_one(circles: Path, tmp_path: Path) -> None:
    folder = tmp_path / "again"
    write_circles(folder, count=120, size=SIZE, seed=3, processes=1)
    (folder / "prompt.json").unlink()
    for number in range(40, 120):
        (folder / "source" / f"{number}.png").unlink()
    (folder / "source" / "7.png").write_bytes((folder / "source" / "7.png").read_bytes()[:100])  # power was lost
    (folder / "target" / ".9.png.123.tmp").write_bytes(b"half")
    kept = (folder / "target" / "3.png").stat().st_mtime_ns
    write_circles(folder, count=120, size=SIZE, seed=3, processes=1)
    assert contents(folder) == contents(circles)
    assert (folder / "target" / "3.png").stat().st_mtime_ns == kept


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_run_leaves_whole_pictures_only_and_no_process(tmp_path: Path, number: int) -> None:
    folder = tmp_path / "stopped"
    arguments = ["data", "circles", str(folder), "--count", "100000", "--size", "128", "--processes", "2"]
    command = [sys.executable, "-m", "controlnet", *arguments]
    running = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE)
    wait_until(lambda: len(list(folder.glob("target/[!.]*.png"))) > 20)
    if number == signal.SIGINT:
        os.killpg(running.pid, number)  # as a terminal does
    else:
        running.kill()
    running.communicate(timeout=20)
    wait_until(lambda: not group_lives(running.pid))
    pictures = list(folder.glob("*/[!.]*.png"))  # what a killed process had not finished has a hidden name
    assert all(decode(path).shape == (128, 128, 3) for path in pictures[:50])
    assert not (folder / "prompt.json").exists()
    if number == signal.SIGINT:
        assert running.returncode == 130
        assert not list(folder.rglob("*.tmp"))


def wait_until(holds, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


def group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_larger_count_adds_pairs_and_keeps_the_first(tmp_path: Path) -> None:
    write_circles(tmp_path / "grown", count=5, size=SIZE, processes=1)
    first = contents(tmp_path / "grown")
    write_circles(tmp_path / "grown", count=8, size=SIZE, processes=1)
    grown = contents(tmp_path / "grown")
    assert len(rows(tmp_path / "grown")) == 8
    assert all(grown[name] == content for name, content in first.items() if name.endswith("png"))


def test_other_settings_in_the_same_folder_are_refused_by_name_and_nothing_changes(circles: Path) -> None:
    before = contents(circles)
    with pytest.raises(UserError, match=r"count 120.*40") as error:
        write_circles(circles, count=40, size=128, seed=9)
    assert "size 64, now 128" in str(error.value)
    assert "seed 3, now 9" in str(error.value)
    assert contents(circles) == before


def test_a_folder_of_other_content_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "prompt.json").write_text("precious")
    with pytest.raises(UserError, match="did not write"):
        write_circles(tmp_path, count=1, size=SIZE)
    assert contents(tmp_path) == {"prompt.json": b"precious"}


def test_all_values_that_make_no_sense_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        write_circles(tmp_path / "none", count=0, size=8, seed=-1, processes=0)
    assert all(name in str(error.value) for name in ("count is 0", "size is 8", "seed is -1", "processes is 0"))
    assert not (tmp_path / "none").exists()


def test_drawing_loads_no_torch() -> None:
    code = "import sys, controlnet.data.circles; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
