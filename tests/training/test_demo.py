import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from controlnet.base import Base
from controlnet.cli.main import run
from controlnet.data.colours import RGB
from controlnet.data.shapes import render
from controlnet.training import demo
from controlnet.training.demo import share_as_named, unseen


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, base: Base) -> None:
    """The demo with a tiny base that knows nothing, and few of everything."""
    monkeypatch.setattr(demo, "open_base", lambda *_: base)
    for name, value in {"PAIRS": 20, "SIZE": 64, "STEPS": 2, "BATCH_SIZE": 2, "UNSEEN": 3, "PICTURES": 1}.items():
        monkeypatch.setattr(demo, name, value)


@pytest.mark.usefixtures("small")
def test_the_demo_writes_what_it_shows_and_ends_with_its_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "demo"
    assert run(["demo", "--out", str(out), "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert re.fullmatch(r"fidelity \d\.\d\d without \d\.\d\d", printed.splitlines()[-1])
    assert "fidelity before the first step: 0." in printed
    shown = Linked()
    shown.feed((out / "index.html").read_text())
    assert shown.sources == ["grid.png", "curve.png"]
    for name in shown.sources:
        assert Image.open(out / name).size[0] > 100
    written = (out / "grid.png").stat().st_mtime_ns
    assert run(["demo", "--out", str(out), "--device", "cpu"]) == 0
    assert capsys.readouterr().out == printed
    assert (out / "grid.png").stat().st_mtime_ns == written, "done work was done again"
    (out / "score.json").unlink()
    assert run(["demo", "--out", str(out), "--device", "cpu"]) == 0
    assert capsys.readouterr().out == printed, "the same control, rings and noise must give the same figures"
    shutil.rmtree(out)


class Linked(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.sources += [value or "" for name, value in attributes if name in ("src", "href")]


def test_the_unseen_rings_are_fixed_and_none_is_a_training_pair() -> None:
    from controlnet.data.circles import draw_circle

    scenes, hints = unseen()
    assert len(scenes) == len(hints) == 64
    assert all(np.array_equal(one, two) for one, two in zip(hints, unseen()[1], strict=True))
    trained = {(scene.x, scene.y, scene.radius) for scene, _ in (draw_circle(0, n) for n in range(demo.PAIRS))}
    assert not trained & {(scene.x, scene.y, scene.radius) for scene in scenes}
    radii = [scene.radius for scene in scenes]
    assert min(radii) < 0.13
    assert max(radii) > 0.37


def test_true_pictures_have_all_colours_as_named_and_swapped_ones_none() -> None:
    scenes, hints = unseen()
    truths = [render(scene, demo.SIZE) for scene in scenes]
    assert share_as_named(truths, scenes, hints) == 1
    swapped = [
        np.where((truth == RGB[scene.colour]).all(axis=2, keepdims=True), RGB[scene.background], RGB[scene.colour])
        for truth, scene in zip(truths, scenes, strict=True)
    ]
    assert share_as_named([np.uint8(picture) for picture in swapped], scenes, hints) < 0.1
