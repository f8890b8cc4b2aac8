"""The page about a data set says what is true of it, and holds all it shows."""

import re

import numpy as np
import pytest

from build import made
from controlnet.build.recipe import make_recipe
from controlnet.build.report import report
from controlnet.build.run import build
from controlnet.cli.main import run
from controlnet.images import encoded

COUNT = 9


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """A build of nine pictures: one broken, one small, one nearly another, one without words."""
    place = tmp_path_factory.mktemp("report")
    folder = made.folder(place / "pictures", COUNT)
    (folder / "002.png").write_bytes(made.picture(2)[:99])
    (folder / "003.png").write_bytes(made.picture(3, size=40))
    (folder / "005.png").unlink()
    (folder / "005.jpg").write_bytes(made.picture(4, format="jpg"))
    (folder / "006.txt").write_text("<b>bold</b> words")
    stages = [
        {"kind": "resolution", "min_side": 64},
        {"kind": "annotate", "condition": "canny", "options": {"detect_resolution": 64}},
    ]
    source = {"kind": "files", "path": "pictures", "license": "CC0-1.0"}
    build(make_recipe({"source": source, "stage": stages}, place / "recipe.toml"), place / "out")
    return place / "out"


@pytest.fixture(scope="module")
def text(out):
    return report(str(out))


def figure(text: str, name: str) -> str:
    [value] = re.findall(rf"<span>{name}</span><b>(.*?)</b>", text)
    return value


def test_the_figures_are_those_of_the_data_set(text):
    assert figure(text, "pairs") == str(COUNT - 2)
    assert figure(text, "near duplicates") == "1"
    assert figure(text, "median caption") == "2"
    assert figure(text, "distinct captions") == str(COUNT - 2)


def test_why_rows_are_not_here_is_told_with_numbers(text):
    for reason in ("source: broken picture", "resolution: side under 64"):
        assert f"<td>{reason}</td><td>1</td>" in text


def test_licences_and_hosts_are_told(text):
    assert f"<td>CC0-1.0</td><td>{COUNT - 2}</td>" in text
    assert f"<td>this machine</td><td>{COUNT - 2}</td>" in text


def test_samples_show_picture_and_hint_and_their_captions_as_text(text):
    section = text[text.index("Samples") : text.index("Pictures and captions")]
    assert section.count("<figcaption>") == COUNT - 2
    assert section.count('src="data:image/webp;base64,') == 2 * (COUNT - 2)
    assert "&lt;b&gt;bold&lt;/b&gt; words" in section


def test_nothing_on_the_page_comes_from_elsewhere_and_nothing_runs(text):
    assert set(re.findall(r'src="(data:image/webp;base64,|[^"]*)', text)) == {"data:image/webp;base64,"}
    assert not re.search(r"<script|<link|@import|url\(|https?://", text)


def test_what_a_training_rejects_is_on_the_page_of_any_data_set(out, tmp_path):
    folder = made.folder(tmp_path / "images", 3)
    hints = made.folder(tmp_path / "hints", 2)
    (hints / "001.png").write_bytes(encoded(np.zeros((32, 64, 3), np.uint8), "png"))
    text = report(f"{folder}::{hints}")
    assert "What a training rejects" in text
    assert "has no hint" in text
    assert "What became of the rows" not in text


def test_the_command_writes_the_page(out, tmp_path, capsys):
    assert run(["data", "report", str(out), str(tmp_path / "page.html")]) == 0
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")
    assert capsys.readouterr().out == f"{tmp_path / 'page.html'}\n"
    assert run(["data", "report", str(tmp_path / "nothing"), str(tmp_path / "other.html")]) == 2
