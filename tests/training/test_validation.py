"""What is measured at a validation, on a tiny base and small circles."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

import tiny
from controlnet.annotators.hed import Hed
from controlnet.base import Base
from controlnet.data.pairs import Pairs
from controlnet.evaluation.convergence import Validation
from controlnet.images import encode_png
from controlnet.training.cache import encode, fingerprint
from controlnet.training.encoded import Encoded
from controlnet.training.module import ControlNetModule
from controlnet.training.record import Record
from controlnet.training.validation import HeldOut, OwnHint, publish


@pytest.fixture(scope="module")
def pairs(base: Base, circles: Path, tmp_path_factory: pytest.TempPathFactory) -> Encoded:
    data = Pairs(circles)
    return encode(base, data, tmp_path_factory.mktemp("cache"), fingerprint(data), Console(quiet=True)).split(5)[1]


def held_out(pairs: Encoded, base: Base, condition: str = "circle", **others: object) -> HeldOut:
    return HeldOut(pairs, base, condition, seed=0, batch_size=2, pictures=2, **others)  # type: ignore[arg-type]


def test_an_untrained_control_has_the_loss_of_the_base_alone_and_no_gain(
    pairs: Encoded, base: Base, tmp_path: Path
) -> None:
    found = held_out(pairs, base).validate(ControlNetModule(base), 0, tmp_path / "grid.png", nullcontext())
    assert found.hint_gain == 0
    assert found.loss == found.base_loss
    assert found.fidelity is not None
    assert found.text_accuracy is None, "only the embedded base's pictures can be judged by their prompts"


def test_the_same_weights_have_the_same_figures_and_pictures_each_time(
    pairs: Encoded, base: Base, tmp_path: Path
) -> None:
    module = ControlNetModule(base)
    tiny.randomised(module.control)
    measured = [
        held_out(pairs, base).validate(module, 7, tmp_path / f"{number}.png", nullcontext()) for number in range(2)
    ]
    assert measured[0] == measured[1]
    assert measured[0].hint_gain != 0
    assert measured[0].loss != measured[0].base_loss
    assert (tmp_path / "0.png").read_bytes() == (tmp_path / "1.png").read_bytes()


def test_the_base_alone_is_measured_before_its_decoder_is_unlocked(pairs: Encoded, base: Base, tmp_path: Path) -> None:
    judged, module = held_out(pairs, base), ControlNetModule(base, sd_unlocked=True)
    before = judged.validate(module, 0, tmp_path / "before.png", nullcontext())
    with torch.no_grad():
        for parameter in module.control.decoder.parameters():  # type: ignore[union-attr]
            parameter.mul_(0.5)
    after = judged.validate(module, 1, tmp_path / "after.png", nullcontext())
    assert after.base_loss == before.base_loss
    assert after.loss != before.loss
    assert (tmp_path / "before.png").read_bytes() != (tmp_path / "after.png").read_bytes()


def test_the_users_own_hints_are_rows_below_the_others(pairs: Encoded, base: Base, tmp_path: Path) -> None:
    encode_png(np.full((90, 130, 3), 255, np.uint8), tmp_path / "own.png")
    module = ControlNetModule(base)
    own = [OwnHint(tmp_path / "own.png", "red"), OwnHint(tmp_path / "own.png", "a red b")]
    held_out(pairs, base).validate(module, 0, tmp_path / "without.png", nullcontext())
    held_out(pairs, base, own=own).validate(module, 0, tmp_path / "with.png", nullcontext())
    heights = [Image.open(tmp_path / f"{name}.png").size[1] for name in ("without", "with")]
    headings = 19  # pixels above the rows
    assert heights[1] - headings == 2 * (heights[0] - headings), "two held-out rows, then two of the user's"


def test_a_fidelity_that_cannot_be_measured_is_told_once_and_stops_nothing(
    pairs: Encoded, base: Base, tmp_path: Path
) -> None:
    judged, module = held_out(pairs, base, "hed"), ControlNetModule(base)
    assert judged.judge is not None
    judged.judge = replace(judged.judge, annotator=Hed(weights_dir=tmp_path))
    for number in range(2):
        assert judged.validate(module, number, tmp_path / "grid.png", nullcontext()).fidelity is None
    [told] = judged.news()
    assert told.startswith("fidelity is not measured: ")
    assert judged.news() == []


def test_what_is_published_is_in_the_record_the_curve_the_report_and_on_the_screen(tmp_path: Path) -> None:
    console, record = Console(record=True, width=200), Record(tmp_path / "metrics.csv", until=0)
    for number, gain in enumerate((0.0, 0.01, 0.4, 0.5)):
        measured = Validation(100 * number, 0.2 - 0.1 * gain, gain, 0.3 + gain, 0.2, 0.9 - gain)
        publish(tmp_path, record, measured, console, ["some news"] if number == 0 else [])
    told = console.export_text()
    assert "step 200: held-out loss 0.1600 (base alone 0.2000), hint gain 0.400, fidelity 0.70" in told
    assert told.count("converged at step 200") == 1
    assert told.count("the base is not preserved: with an empty hint 50%") == 1
    assert told.count("some news") == 1
    assert Record(tmp_path / "metrics.csv", until=300).history[-1].text_accuracy == pytest.approx(0.4)
    assert Image.open(tmp_path / "curve.png").size[0] > 400
    assert "sudden convergence, step 200" in (tmp_path / "report.html").read_text()
