"""Do the pictures obey their hints? The one table of how each condition is judged.

The generated picture is annotated again, by the annotator that made the hints, and the two hints are compared. The
first measure of a condition is its *fidelity*: 0 to 1, more is better.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from controlnet.annotators.annotator import Annotator, all_options
from controlnet.annotators.inpaint import OPAQUE_FROM
from controlnet.annotators.people import PeopleAnnotator
from controlnet.annotators.resolution import to_size
from controlnet.annotators.table import ANNOTATORS, load
from controlnet.evaluation.fidelity import fidelity as fidelity_to_ring
from controlnet.evaluation.metrics import (
    class_overlap,
    keypoint_similarity,
    line_f1,
    root_mean_square,
    same_direction,
    structural_similarity,
)
from controlnet.images import Rgb

Measure = Callable[[Any, Any], float]  # what is seen in the picture, what was asked for
Scores = dict[str, list[float]]  # by measure, one for each picture

LINES: dict[str, Measure] = {"F1": line_f1}
SOFT_LINES: dict[str, Measure] = {"F1": line_f1, "SSIM": structural_similarity}
SURFACE: dict[str, Measure] = {"SSIM": structural_similarity, "RMSE": root_mean_square}
DIRECTION: dict[str, Measure] = {"cosine": same_direction, "RMSE": root_mean_square}


@dataclass(frozen=True)
class Kind:
    """How a condition is judged."""

    measures: Mapping[str, Measure]
    """The first is its fidelity."""
    annotator: str | None = None
    """Its annotator's name in the table, if the hints don't say who made them; None judges the picture itself."""


def _kept(measure: Callable[..., float]) -> Measure:
    """Of a picture against a hint for inpainting (H, W, 4): only where the hint is opaque."""
    return lambda picture, hint: measure(picture, np.ascontiguousarray(hint[..., :3]), hint[..., 3] >= OPAQUE_FROM)


# condition -> how it is judged; shuffle, none and words of the user's own have no measure
KINDS: dict[str, Kind] = {
    "circle": Kind({"IoU": fidelity_to_ring}),
    "canny": Kind(LINES, "canny"),
    "mlsd": Kind(LINES, "mlsd"),
    "scribble": Kind(LINES, "fake_scribble"),
    "hed": Kind(SOFT_LINES, "hed"),
    "lineart": Kind(SOFT_LINES, "lineart"),
    "lineart_anime": Kind(SOFT_LINES, "lineart_anime"),
    "seg": Kind({"mIoU": class_overlap}, "seg"),
    "depth": Kind(SURFACE, "depth"),
    "normal": Kind(DIRECTION, "normal"),
    "pose": Kind({"OKS": keypoint_similarity}, "pose"),
    "tile": Kind(SURFACE, "tile"),
    "grey": Kind(SURFACE, "grey"),
    "inpaint": Kind({"SSIM": _kept(structural_similarity), "RMSE": _kept(root_mean_square)}),
}


OF_DRAWINGS = ("Scribble",)  # annotators that invert a drawing, and see nothing in a picture


@dataclass(frozen=True, eq=False)
class Judge:
    """Scores pictures of one condition."""

    condition: str
    measures: Mapping[str, Measure]
    annotator: Annotator | None = None

    def scores(self, pictures: Sequence[Rgb], hints: Sequence[Rgb], truths: Sequence[Rgb]) -> Scores:
        """Of each picture (H, W, 3), by measure; `hints` and the `truths` that they were made from have their size.

        Skeletons can't be read from a hint: people are found in picture and truth alike. UserError if the annotator's
        weights cannot be had.
        """
        seen = pictures if self.annotator is None else self._seen(self.annotator, pictures)
        is_pose = isinstance(self.annotator, PeopleAnnotator)
        asked = self._seen(self.annotator, truths) if self.annotator and is_pose else hints
        pairs = list(zip(seen, asked, strict=True))
        return {name: [measure(one, other) for one, other in pairs] for name, measure in self.measures.items()}

    def fidelity(self, pictures: Sequence[Rgb], hints: Sequence[Rgb], truths: Sequence[Rgb]) -> float:
        """The mean of the first measure."""
        return float(np.mean(next(iter(self.scores(pictures, hints, truths).values()))))

    @staticmethod
    def _seen(annotator: Annotator, pictures: Sequence[Rgb]) -> Sequence[Any]:
        if isinstance(annotator, PeopleAnnotator):
            return [annotator.keypoints(picture) for picture in pictures]
        is_smooth = annotator.meaning.is_smooth
        hints = annotator.batch(list(pictures))
        return [
            to_size(hint, (picture.shape[1], picture.shape[0]), is_smooth)
            for hint, picture in zip(hints, pictures, strict=True)
        ]


def find_judge(condition: str, description: Mapping[str, Any], device: str = "auto") -> Judge | None:
    """The judge of a condition, with the annotator that the hints say made them (`hint_file.description`).

    None for conditions that have no measure.
    """
    kind = KINDS.get(condition)
    if kind is None:
        return None
    if kind.annotator is None:
        return Judge(condition, kind.measures)
    return Judge(condition, kind.measures, _annotator(kind.annotator, description, device))


def _annotator(usual: str, description: Mapping[str, Any], device: str) -> Annotator:
    """As described, or the usual one with its defaults; options that it does not have any more are left out."""
    classes = {place.split(":")[1]: name for name, place in ANNOTATORS.items()}
    names = {kind: name for kind, name in classes.items() if kind not in OF_DRAWINGS}
    of_hints = load(names.get(str(description.get("annotator")), usual))
    known = {option.name for option in all_options(of_hints)}
    options = {name: value for name, value in description.get("options", {}).items() if name in known}
    return of_hints(**options | ({"device": device} if "device" in known else {}))
