import dataclasses
from pathlib import Path

import cv2
import numpy as np
import pytest

from controlnet.annotators.annotator import NetworkAnnotator
from controlnet.annotators.canny import Canny
from controlnet.annotators.hint_file import description
from controlnet.annotators.pose import Pose
from controlnet.annotators.skeleton import BODY, Keypoint, People, Person
from controlnet.annotators.table import ANNOTATORS, load
from controlnet.errors import UserError
from controlnet.evaluation.obedience import KINDS, Judge, find_judge

SIZE = 128


def picture(shift: int = 0) -> np.ndarray:
    canvas = np.full((SIZE, SIZE, 3), (40, 80, 160), np.uint8)
    cv2.rectangle(canvas, (30 + shift, 30), (80 + shift, 90), (230, 210, 20), -1)
    cv2.circle(canvas, (95, 40), 18, (220, 30, 60), -1)
    return canvas


WITHOUT_NETWORK = [
    condition
    for condition, kind in KINDS.items()
    if kind.annotator and not issubclass(load(kind.annotator), NetworkAnnotator)
]


@pytest.mark.parametrize("condition", WITHOUT_NETWORK)
def test_a_picture_obeys_its_own_hint_wholly_and_anothers_less(condition: str) -> None:
    judge = find_judge(condition, {})
    assert judge is not None
    assert judge.annotator is not None
    hint = cv2.resize(judge.annotator(picture()), (SIZE, SIZE), interpolation=cv2.INTER_NEAREST)
    own, other = (judge.fidelity([seen], [hint], [seen]) for seen in (picture(), picture(25)))
    assert own > 0.99
    assert other < own - 0.02


def test_every_condition_of_the_annotators_has_a_measure_or_can_have_none() -> None:
    conditions = {load(name).meaning.condition for name in ANNOTATORS}
    assert conditions - KINDS.keys() == {"shuffle", "none"}


def test_the_annotator_is_the_one_that_the_hints_say_made_them() -> None:
    judge = find_judge("canny", description(Canny(low=20, high=60, detect_resolution=256)))
    assert judge is not None
    assert judge.annotator == Canny(low=20, high=60, detect_resolution=256)
    later = {"annotator": "Canny", "options": {"low": 30, "an_option_of_tomorrow": 1}}
    assert find_judge("canny", later).annotator == Canny(low=30)  # type: ignore[union-attr]


def test_conditions_without_a_measure_have_no_judge() -> None:
    assert find_judge("shuffle", {}) is None
    assert find_judge("a word of my own", {}) is None


def test_inpainting_is_judged_only_where_the_hint_is_opaque() -> None:
    judge = find_judge("inpaint", {})
    hint = np.dstack([picture(), np.full((SIZE, SIZE), 255, np.uint8)])
    hint[:, 64:, 3] = 0
    painted = picture()
    painted[:, 80:] = 0
    assert judge is not None
    assert judge.scores([painted], [hint], [picture()])["RMSE"] == [0]
    painted[:, :40] = 0
    assert judge.scores([painted], [hint], [picture()])["RMSE"][0] > 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Marks(Pose):
    """Finds one person, whose every joint is where the picture is brightest."""

    def find(self, pictures_bhwc: np.ndarray) -> list[People]:
        found = []
        for rgb in pictures_bhwc:
            y, x = np.unravel_index(rgb.max(axis=2).argmax(), rgb.shape[:2])
            joints = tuple(Keypoint(float(x + n), float(y + n * n % 7)) for n in range(len(BODY)))
            found.append(People((rgb.shape[1], rgb.shape[0]), (Person(joints),)))
        return found


def test_people_are_sought_in_the_picture_and_in_the_truth_never_in_the_hint() -> None:
    judge = Judge("pose", KINDS["pose"].measures, Marks(detect_resolution=0, device="cpu"))
    here, there = (np.zeros((SIZE, SIZE, 3), np.uint8) for _ in range(2))
    here[20, 20], there[80, 80] = 255, 255
    hint = np.zeros_like(here)
    assert judge.fidelity([here], [hint], [here]) == pytest.approx(1)
    assert judge.fidelity([there], [hint], [here]) < 0.01


def test_weights_that_cannot_be_had_are_an_error_for_people(tmp_path: Path) -> None:
    judge = find_judge("hed", {"annotator": "Hed", "options": {}})
    assert judge is not None
    assert judge.annotator is not None
    without = dataclasses.replace(judge, annotator=dataclasses.replace(judge.annotator, weights_dir=tmp_path))
    with pytest.raises(UserError):
        without.fidelity([picture()], [picture()], [picture()])


def test_a_scribble_is_judged_by_the_pictures_soft_edges_whatever_drew_it() -> None:
    for maker in ("Scribble", "FakeScribble"):
        judge = find_judge("scribble", {"annotator": maker, "options": {}})
        assert type(judge.annotator).__name__ == "FakeScribble"  # type: ignore[union-attr]
