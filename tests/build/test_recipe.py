"""Recipes: what TOML says becomes a checked build, or all that is wrong is told at once."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from controlnet.build.filters import Resize
from controlnet.build.recipe import read_recipe
from controlnet.build.table import STAGES, load
from controlnet.errors import UserError
from controlnet.training.ahead import OPTIONS
from controlnet.training.config import TrainConfig

PAGE = Path(__file__).parents[2] / "docs" / "build.md"

GOOD = """
shard_size = 10
[source]
kind = "files"
path = "pictures"
[[stage]]
kind = "resize"
size = 96
[[stage]]
kind = "duplicates"
[[stage]]
kind = "resize"
[[stage]]
kind = "annotate"
condition = "canny"
options.low = 50
"""


def read(tmp_path, text):
    (tmp_path / "recipe.toml").write_text(text)
    return read_recipe(tmp_path / "recipe.toml")


def test_a_recipe_is_typed_its_paths_lie_beside_it_and_stages_have_names_of_their_own(tmp_path):
    recipe = read(tmp_path, GOOD)
    assert recipe.source.path == tmp_path / "pictures"
    assert recipe.stages[0] == Resize(size=96)
    assert recipe.names == ("resize", "duplicates", "resize-2", "annotate")
    assert recipe.shard_size == 10


def test_a_barrier_begins_a_phase(tmp_path):
    assert [[name for name, _ in phase] for phase in read(tmp_path, GOOD).phases()] == [
        ["resize"],
        ["duplicates", "resize-2", "annotate"],
    ]


def test_all_that_is_wrong_is_told_at_once(tmp_path):
    text = """
        shard_size = 0
        stop_when_failed = 2
        shards = 3
        [source]
        kind = "prompts"
        templates = ["{room}"]
        words.rom = ["bath"]
        [[stage]]
        kind = "resise"
        [[stage]]
        kind = "resize"
        size = "large"
        sise = 3
        [[stage]]
        kind = "annotate"
        [[stage]]
        size = 3
        [sink]
        kind = "disk"
    """
    with pytest.raises(UserError) as caught:
        read(tmp_path, text)
    for problem in (
        "there is no 'shards'; expected one of: source, stage, sink, shard_size, stop_when_failed",
        "shard_size is 0",
        "stop_when_failed is 2",
        "source prompts: {room} has no words; add words.room",
        "there is no stage 'resise'; expected one of: ",
        "stage resize: size is 'large'; expected a whole number",
        "stage resize: there is no 'sise'; expected one of: size, mode",
        "stage annotate: condition is missing",
        "[stage] has no kind",
        "there is no sink 'disk'; expected one of: folder",
    ):
        assert problem in str(caught.value)


@pytest.mark.parametrize("text", ["[source\n", "\x00"])
def test_a_file_that_is_no_toml_is_refused_by_name(tmp_path, text):
    with pytest.raises(UserError, match="recipe.toml: cannot be read as TOML"):
        read(tmp_path, text)


def test_the_page_tells_the_options_of_every_stage_and_their_true_defaults():
    section = PAGE.read_text().partition("## Stages")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| [^|]+ \| ([^|]+) \|$", section, flags=re.MULTILINE)
    assert {kind for kind, _ in rows} == set(STAGES)
    for kind, options in rows:
        defaults = {field.name: field.default for field in fields(load(STAGES, kind, "stage"))}
        told = re.findall(r"`(\w+)(?:\.\w+)?`(?: \(([\d.]+))?", re.sub(r"\((`[^)]*)\)", "", options))
        assert {name for name, _ in told} <= set(defaults), kind
        assert all(float(value) == defaults[name] for name, value in told if value), kind


def test_the_page_tells_all_options_of_encoding():
    section = PAGE.read_text().partition("## Encoded ahead")[2].partition("\n## ")[0]
    first_cells = re.findall(r"^\| (`[^|]+) \|", section, flags=re.MULTILINE)
    assert sorted(re.findall(r"`(\w+)`", " ".join(first_cells))) == sorted(OPTIONS)
    for option, default in re.findall(r"^\| `(\w+)` \| `(\w+)` \|", section, flags=re.MULTILINE):
        assert TrainConfig.__dataclass_fields__[option].default == default
