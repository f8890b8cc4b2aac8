"""From ideas to a training: prompts find pictures, which are captioned, annotated, packed, and trained on."""

import json
from pathlib import Path

import pytest

from build import shape_clip, tiny_models
from controlnet.build.recipe import read_recipe
from controlnet.build.shards import rows_in
from controlnet.cli.main import run
from controlnet.data.pairs import Pairs
from controlnet.data.shapes import render
from controlnet.images import encoded

ROOT = Path(__file__).parents[2]
TOML = """
shard_size = 4
[source]
kind = "prompts"
templates = ["{{colour}} circle with white background"]
words.colour = ["red", "blue", "green"]
[[stage]]
kind = "retrieve"
index = "index"
count = 4
[[stage]]
kind = "duplicates"
by = "sha256"
[[stage]]
kind = "clip_score"
model = "{clip}"
least = -0.9
[[stage]]
kind = "caption"
model = "{blip}"
max_tokens = 4
[[stage]]
kind = "annotate"
condition = "canny"
options.detect_resolution = 128
[sink]
kind = "{sink}"
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory, clip_folder):
    """A folder with an index of forty pictures of the world, and a captioner."""
    place = tmp_path_factory.mktemp("end_to_end")
    (place / "pictures").mkdir()
    for number, scene in enumerate(shape_clip.scenes(40, seed=3)):
        (place / f"pictures/{number}.png").write_bytes(encoded(render(scene, 128), "png"))
        (place / f"pictures/{number}.txt").write_text(scene.caption)
    tiny_models.blip(place / "blip")
    command = ["build", "index", str(place / "pictures"), str(place / "index"), "--model", str(clip_folder)]
    assert run([*command, "--device", "cpu"]) == 0
    return place


@pytest.mark.parametrize("sink", ["folder", "webdataset", "huggingface"])
def test_a_recipe_from_prompts_gives_a_data_set_that_a_training_takes(place, clip_folder, sink, capfd):
    recipe, out = place / f"{sink}.toml", place / sink
    recipe.write_text(TOML.format(clip=clip_folder, blip=place / "blip", sink=sink))
    assert run(["build", str(recipe), str(out), "--device", "cpu"]) == 0
    rows = list(rows_in(out / "shards"))
    counts = json.loads((out / "counts.json").read_text())
    assert counts["retrieve"]["in"] == 3
    assert counts["retrieve"]["made"] == 9
    wanted = [row for row in rows if row.status == "ok"]
    assert counts["annotate"]["out"] == len(wanted) == len(Pairs(out))
    assert len(rows) == 12
    assert len({row.values["sha256"] for row in wanted}) == len(wanted)
    for row in wanted:
        assert {"prompt", "parent", "similarity", "clip_score", "captioner", "annotator"} <= row.values.keys()
    assert run(["data", "check", str(out)]) == 0


@pytest.mark.slow
def test_the_embedded_base_trains_on_the_shards_of_a_build(place, clip_folder, tmp_path):
    recipe, out = place / "trained.toml", place / "trained"
    recipe.write_text(TOML.format(clip=clip_folder, blip=place / "blip", sink="webdataset"))
    assert run(["build", str(recipe), str(out), "--device", "cpu"]) == 0
    command = ["train", "--data", str(out), "--out", str(tmp_path / "run"), "--max-train-steps", "2"]
    command += ["--train-batch-size", "2", "--num-validation-images", "1", "--device", "cpu"]
    assert run(command) == 0
    assert list((tmp_path / "run").rglob("*.safetensors"))


def test_the_recipe_of_edges_runs_with_nothing_but_drawn_pictures(tmp_path, monkeypatch, capfd):
    """As docs/build.md tells it to a newcomer."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "edges.toml").write_text((ROOT / "docs/recipes/edges.toml").read_text())
    assert run(["data", "circles", "pictures", "--count", "20", "--size", "128"]) == 0
    assert run(["build", "edges.toml", "edges", "--device", "cpu"]) == 0
    assert "20 pairs encoded in edges/cache, for: controlnet train --data edges" in capfd.readouterr().out
    pairs = Pairs(tmp_path / "edges")
    assert len(pairs) == 20
    assert pairs.meaning["condition"] == "canny"
    for pair in pairs:
        assert pair["jpg"].shape == pair["hint"].shape == (128, 128, 3)
        assert "circle with" in pair["txt"]
    assert sum(pair["hint"].any() for pair in pairs) >= 18, "few discs are so like their ground that nothing is seen"
    assert run(["data", "check", "edges"]) == 0
    assert run(["data", "report", "edges", "edges.html"]) == 0


@pytest.mark.slow
def test_the_embedded_base_trains_on_the_edges_without_encoding_anything(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "edges.toml").write_text((ROOT / "docs/recipes/edges.toml").read_text())
    assert run(["data", "circles", "pictures", "--count", "20", "--size", "128"]) == 0
    assert run(["build", "edges.toml", "edges", "--device", "cpu"]) == 0
    command = ["train", "--data", "edges", "--out", "run", "--max-train-steps", "2", "--train-batch-size", "2"]
    assert run([*command, "--num-validation-images", "1", "--device", "cpu"]) == 0
    assert "edges/cache: 20 of 20 pictures are encoded there" in capfd.readouterr().err
    assert not (tmp_path / "run/cache").exists()
    assert (tmp_path / "run/control.safetensors").is_file()


def test_the_recipe_of_rooms_asks_for_every_kind_of_room_from_the_beginning():
    rooms = read_recipe(ROOT / "docs/recipes/interior_design.toml")
    prompts = [row.values["prompt"] for row in rooms.source.rows()]
    assert len(set(prompts)) == len(prompts) == 30 * 3 * 24
    first = {prompt.partition(", ")[0].split(" ", 1)[1] for prompt in prompts[:60]}
    assert len(first) > 20
