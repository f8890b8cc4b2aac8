"""Whole builds: counts add up, nothing is lost, and however often one is stopped it ends as an undisturbed one."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from build import made
from controlnet.build.recipe import make_recipe
from controlnet.build.run import build
from controlnet.build.shards import rows_in
from controlnet.cli.main import run
from controlnet.data.pairs import Pairs
from controlnet.errors import UserError

COUNT = 23
TOML = """
shard_size = 5
[source]
kind = "files"
path = "pictures"
[[stage]]
kind = "resolution"
min_side = 64
[[stage]]
kind = "duplicates"
[[stage]]
kind = "resize"
size = 64
format = "png"
[[stage]]
kind = "annotate"
condition = "canny"
options.detect_resolution = 64
[sink]
kind = "folder"
"""


@pytest.fixture
def recipe(tmp_path):
    """A recipe for 23 pictures: one is there twice, one is too small, one is broken."""
    folder = made.folder(tmp_path / "pictures", COUNT)
    (folder / "020.png").write_bytes((folder / "003.png").read_bytes())
    (folder / "007.png").write_bytes(made.picture(7, size=48))
    (folder / "011.png").write_bytes(made.picture(11)[:150])
    (tmp_path / "recipe.toml").write_text(TOML)
    return tmp_path / "recipe.toml"


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_build_gives_pairs_to_train_on_and_a_row_for_every_candidate(recipe, tmp_path):
    assert run(["build", str(recipe), str(tmp_path / "out")]) == 0
    pairs = Pairs(tmp_path / "out")
    assert len(pairs) == COUNT - 3
    assert pairs.prompt(0) == "shape 0"
    rows = {Path(row.values["source"]).name: row for row in rows_in(tmp_path / "out/shards")}
    assert len(rows) == COUNT
    ended = {name: (row.status, row.stage, row.reason) for name, row in rows.items() if row.status != "ok"}
    assert ended == {
        "007.png": ("dropped", "resolution", "side under 64"),
        "011.png": ("failed", "source", "broken picture"),
        "020.png": ("dropped", "duplicates", "duplicate by phash"),
    }
    assert not (tmp_path / "out/work").exists()


def test_pictures_without_a_caption_are_told_at_the_end(recipe, tmp_path, capsys):
    assert run(["build", str(recipe), str(tmp_path / "all")]) == 0
    assert "no caption" not in capsys.readouterr().err
    for number in (2, 4, 11):  # the last is broken, so nobody misses its caption
        (tmp_path / f"pictures/{number:03d}.txt").unlink()
    assert run(["build", str(recipe), str(tmp_path / "out")]) == 0
    assert "2 of them have no caption: add a stage caption" in capsys.readouterr().err.replace("\n", " ")


def test_counts_add_up_at_every_stage(recipe, tmp_path, capsys):
    assert run(["build", str(recipe), str(tmp_path / "out")]) == 0
    counts = json.loads((tmp_path / "out/counts.json").read_text())
    assert list(counts) == ["source", "resolution", "duplicates", "resize", "annotate"]
    for count in counts.values():
        assert count["in"] + count["made"] == count["out"] + sum((count["dropped"] | count["failed"]).values())
    for before, after in zip(list(counts.values()), list(counts.values())[1:], strict=False):
        assert before["out"] == after["in"]
    assert f"{COUNT - 3} rows in 5 shards" in capsys.readouterr().out


def test_the_number_of_workers_changes_nothing(recipe, tmp_path):
    for workers in ("1", "4"):
        assert run(["build", str(recipe), str(tmp_path / workers), "--workers", workers]) == 0
    assert files(tmp_path / "1") == files(tmp_path / "4")


def test_killed_at_any_moment_the_same_command_ends_with_the_same_data_set(recipe, tmp_path):
    command = [sys.executable, "-m", "controlnet", "build", str(recipe)]
    start = time.monotonic()
    assert subprocess.run([*command, str(tmp_path / "whole")], capture_output=True).returncode == 0
    whole_time = time.monotonic() - start
    for number in range(5):
        process = subprocess.Popen(
            [*command, str(tmp_path / "out")], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        time.sleep(whole_time * (0.5 + number / 10))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert run(["build", str(recipe), str(tmp_path / "out")]) == 0
    assert files(tmp_path / "out") == files(tmp_path / "whole")


class Stopped(Exception):
    pass


def test_stopped_after_any_number_of_shards_it_goes_on(recipe, tmp_path):
    from controlnet.build.recipe import read_recipe

    asked = read_recipe(recipe)
    build(asked, tmp_path / "whole")
    for stop in range(1, 15):

        def report(counts: object, left: list[int] = [stop]) -> None:  # noqa: B006  # counts down within one run
            left[0] -= 1
            if left[0] == 0:
                raise Stopped

        out = tmp_path / str(stop)
        with pytest.raises(Stopped):
            build(asked, out, report=report)
        build(asked, out)
        assert files(out) == files(tmp_path / "whole")


def test_a_folder_of_another_recipe_is_refused_and_told_apart(recipe, tmp_path):
    assert run(["build", str(recipe), str(tmp_path / "out")]) == 0
    recipe.write_text(TOML.replace("min_side = 64", "min_side = 32"))
    assert run(["build", str(recipe), str(tmp_path / "out")]) == 2
    assert run(["build", str(recipe), str(tmp_path)]) == 2  # files, but no build


def test_a_recipe_whose_rows_nearly_all_fail_stops_and_can_be_mended(tmp_path):
    folder = made.folder(tmp_path / "pictures", 30)
    for path in list(folder.glob("*.png"))[1:]:
        path.write_bytes(b"<html>")
    told = {"source": {"kind": "files", "path": str(folder)}, "sink": {"kind": "webdataset"}}
    with pytest.raises(UserError, match="29 of 30 rows of a shard failed at the stage source: no picture \\(29\\)"):
        build(make_recipe(told, tmp_path / "r.toml"), tmp_path / "out")
    built = build(make_recipe({**told, "stop_when_failed": 1.0}, tmp_path / "r.toml"), tmp_path / "out")
    assert (built.rows, built.counts["source"].failed) == (1, {"no picture": 29})


def test_pairs_without_hints_are_refused_before_anything_runs(tmp_path):
    told = {"source": {"kind": "files", "path": "nowhere"}, "sink": {"kind": "folder"}}
    with pytest.raises(UserError, match="add a stage annotate"):
        build(make_recipe(told, tmp_path / "r.toml"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
