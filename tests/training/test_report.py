import json
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from controlnet.evaluation.page import Series, chart, page, ticks
from controlnet.images import encode_png
from controlnet.training.record import Record
from controlnet.training.report import NAME, report, write_report


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that converged and then learned its pairs by heart."""
    record = Record(tmp_path / "metrics.csv", until=0)
    for number in range(12):
        step = 100 * number
        if step:
            record.add(step, loss=0.2 - 0.015 * number, images_per_second=30.0, peak_memory=5.2e9)
        gain, loss = (0.0, 0.2) if number < 3 else (0.4, 0.15 + 0.01 * number)
        record.add(step, held_out_loss=loss, base_loss=0.2, hint_gain=gain, fidelity=0.1 + gain)
        encode_png(np.full((32, 48, 3), 20 * number, np.uint8), tmp_path / "samples" / f"step-{step:06d}.png")
    config = {"base": "embedded", "condition": "circle", "data": "<b>x</b>", "versions": {"torch": "2"}, "seed": 0}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.tags: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.sources += [value or "" for name, value in attributes if name in ("src", "href")]


def test_the_page_holds_all_that_it_shows_and_runs_nothing(run: Path) -> None:
    write_report(run)
    shown = Page((run / NAME).read_text())
    assert len(shown.sources) == 12
    assert all(source.startswith("data:image/webp;base64,") for source in shown.sources)
    assert "script" not in shown.tags
    assert "http" not in (run / NAME).read_text().replace("http-equiv", "")


def test_it_tells_the_convergence_the_warning_and_the_figures(run: Path) -> None:
    text = report(run)
    assert "sudden convergence, step 300" in text
    assert "overfitting: since step 300" in text
    for figure in ("1,100", "0.2600", "0.40", "0.50", "5.2 GB"):
        assert f"<b>{figure}</b>" in text


def test_what_the_configuration_says_is_text_and_no_markup(run: Path) -> None:
    assert "&lt;b&gt;x&lt;/b&gt;" in report(run)
    assert "<b>x</b>" not in report(run)


def test_a_run_that_has_measured_nothing_has_a_page_too(tmp_path: Path) -> None:
    assert "no sudden convergence yet" in report(tmp_path)


def test_of_many_grids_the_first_the_last_and_some_between_are_shown(run: Path) -> None:
    for step in range(1200, 9000, 100):
        encode_png(np.zeros((8, 8, 3), np.uint8), run / "samples" / f"step-{step:06d}.png")
    captions = re.findall(r"<figcaption>step ([\d,]+)</figcaption>", report(run))
    assert len(captions) == 12
    assert (captions[0], captions[-1]) == ("8,900", "0")


def test_points_lie_where_their_values_are() -> None:
    drawn = chart("t", [Series("s", [(0, 0.0), (50, 0.5), (100, 1.0)], "a")])
    svg = ElementTree.fromstring(drawn[drawn.index("<svg") : drawn.index("</svg>") + 6])
    places = [(float(dot.attrib["cx"]), float(dot.attrib["cy"])) for dot in svg.iter("circle")]
    assert places[1] == pytest.approx(tuple(np.mean([places[0], places[2]], axis=0)))
    assert places[0][1] > places[2][1], "more must be higher"


def test_a_line_of_many_points_is_drawn_by_few_and_a_flat_one_at_all() -> None:
    many = chart("t", [Series("s", [(step, 0.1) for step in range(50_000)], "a", "noisy")])
    assert len(many) < 40_000
    assert "NaN" not in many
    assert chart("t", [Series("s", [], "a")]) == ""
    assert "<svg" in chart("t", [Series("s", [(0, 0.0)], "a")])


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.0093, 0.0151), (0, 300), (12, 13), (0, 1e6)])
def test_ticks_are_round_and_inside(low: float, high: float) -> None:
    found = ticks(low, high)
    assert 3 <= len(found) <= 7
    assert all(low - 1e-9 <= each <= high + 1e-9 for each in found)
    advance = found[1] - found[0]
    assert float(f"{advance:.1g}") == pytest.approx(advance)


def test_titles_are_text() -> None:
    assert "<title>a &amp; b</title>" in page("a & b")
