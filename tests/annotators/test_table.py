"""The table of annotators: each can be had by name, says what it is, and costs nothing until it is used."""

import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

import controlnet.annotators
from controlnet.annotators.annotator import NetworkAnnotator, all_options, options
from controlnet.annotators.table import ANNOTATORS, load
from controlnet.annotators.weights import WEIGHTS
from controlnet.cli.annotate import Annotate
from controlnet.errors import UserError

PAGE = Path(__file__).parents[2] / "docs/annotators.md"
every = pytest.mark.parametrize("condition", ANNOTATORS)


@every
def test_an_annotator_says_what_it_draws_and_what_its_hints_mean(condition):
    kind = load(condition)
    assert kind.__doc__
    meaning = kind().hint_meaning()
    assert meaning.condition
    assert meaning.values
    assert meaning.polarity in {"light on dark", "dark on light", "near is light", "none", "unknown"}
    assert meaning.channel_order in {"RGB", "BGR", "RGBA"}


@every
def test_every_option_has_a_default_a_text_and_if_it_is_a_number_a_range(condition):
    for option in options(load(condition)):
        assert option.help.endswith((".", ")")), option
        assert option.range or option.choices or option.type in {bool, str}, option


@every
def test_no_option_has_the_name_of_one_of_the_commands(condition):
    assert {option.name for option in all_options(load(condition))} & {
        field.name for field in fields(Annotate)
    } == set()


@every
def test_the_detect_resolution_is_384_for_depth_and_normals_and_512_for_other_networks(condition):
    kind = load(condition)
    if issubclass(kind, NetworkAnnotator):
        assert kind().detect_resolution == (384 if condition in {"depth", "normal"} else 512)


def test_the_package_offers_every_annotator_by_its_class_name():
    for condition, home in ANNOTATORS.items():
        assert getattr(controlnet.annotators, home.split(":")[1]) is load(condition)
    with pytest.raises(AttributeError, match="it offers Canny"):
        _ = controlnet.annotators.Cany


def test_an_unknown_condition_is_a_user_error_that_names_the_nearest():
    with pytest.raises(UserError, match="no annotator 'cany'.*did you mean canny"):
        load("cany")


def test_to_know_all_annotators_and_their_options_takes_no_torch():
    source = (
        "import sys\n"
        "from controlnet.annotators.annotator import options\n"
        "from controlnet.annotators.table import ANNOTATORS, load\n"
        "for condition in ANNOTATORS: options(load(condition)), load(condition)()\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'datasets'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    ended = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


def test_weights_that_are_not_for_commerce_say_so():
    assert {name for name, weights in WEIGHTS.items() if not weights.is_commercial} >= {"openpose_body"}
    assert all(weights.licence for weights in WEIGHTS.values())


def test_the_page_of_annotators_tells_of_every_condition():
    rows = re.findall(r"^\| \[?`(\w+)`", PAGE.read_text(), re.MULTILINE)
    assert rows == list(ANNOTATORS)


def test_the_page_shows_a_picture_of_every_annotator_without_a_network():
    for condition in ANNOTATORS:
        is_shown = f"(annotators/{condition}.webp)" in PAGE.read_text()
        assert is_shown == (condition != "none" and not issubclass(load(condition), NetworkAnnotator))


def test_the_annotator_that_the_page_adds_works(tmp_path, monkeypatch):
    code = next(block for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL) if "class" in block)
    (tmp_path / "posterise.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(ANNOTATORS, "posterise", "posterise:Posterise")
    grey = np.arange(256, dtype=np.uint8)[None]
    assert np.unique(load("posterise")(steps=4, detect_resolution=0)(grey)).tolist() == [32, 96, 160, 224]
