"""How alike two hints are: the asked one and the one that an annotator makes of the generated picture.

Each is a formula on (h, w, 3) uint8 pictures or on keypoints, with no knowledge of conditions; `obedience.py` says
which condition is measured by which.
"""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from controlnet.annotators.ade20k import PALETTE
from controlnet.annotators.seg import snap
from controlnet.annotators.skeleton import NECK, People, Person
from controlnet.images import Rgb

Mask = NDArray[np.bool_]

LIGHT = 128  # grey level from which a pixel belongs to a line
TOLERANCE = 0.0075  # of the diagonal, by which a line may be off (Martin, Fowlkes, Malik 2004, the BSDS benchmark)
# Wang et al. 2004: a Gaussian window of 11 with deviation 1.5, K1 = 0.01 and K2 = 0.03 of the dynamic range
WINDOW, DEVIATION, SMALL_MEAN, SMALL_VARIANCE = 11, 1.5, (0.01 * 255) ** 2, (0.03 * 255) ** 2
# COCO's per-keypoint deviations (cocodataset.org, "keypoint eval"), in the order of its 17: nose, eyes, ears,
# shoulders, elbows, wrists, hips, knees, ankles
COCO_DEVIATIONS = dict(
    zip(
        ("nose", "eye", "ear", "shoulder", "elbow", "wrist", "hip", "knee", "ankle"),
        (0.026, 0.025, 0.035, 0.079, 0.072, 0.062, 0.107, 0.087, 0.089),
        strict=True,
    )
)
# OpenPose's 18: the neck, which COCO lacks, is made of the shoulders
BODY_PARTS = (
    *("nose", "shoulder", "shoulder", "elbow", "wrist", "shoulder", "elbow", "wrist", "hip", "knee", "ankle"),
    *("hip", "knee", "ankle", "eye", "eye", "ear", "ear"),
)
BODY_DEVIATIONS = np.array([COCO_DEVIATIONS[part] for part in BODY_PARTS])
assert BODY_PARTS[NECK] == "shoulder"
AREA_OF_BOX = 0.53  # of a person's box, what COCO's people cover on average (Wu et al. 2017, AI Challenger)


def overlap(first: Mask, second: Mask) -> float:
    """Intersection over union of two masks (h, w); 0 where both are empty."""
    union = int((first | second).sum())
    return float((first & second).sum() / union) if union else 0.0


def class_overlap(seen: Rgb, asked: Rgb) -> float:
    """Mean intersection over union of ADE20K's classes that are in either picture; colours off the palette snap."""
    first, second = snap(seen)[0], snap(asked)[0]
    classes = np.union1d(first, second)
    both = np.bincount(first[first == second], minlength=len(PALETTE))[classes]
    either = sum(np.bincount(each.ravel(), minlength=len(PALETTE))[classes] for each in (first, second)) - both
    return float(np.mean(both / either))


def line_f1(seen: Rgb, asked: Rgb) -> float:
    """F1 of lines, light on dark: 2 P R / (P + R), where a pixel counts as found within TOLERANCE of the diagonal.

    1 where both are empty, 0 where one is.
    """
    first, second = (picture.max(axis=2) >= LIGHT for picture in (seen, asked))
    if not first.any() or not second.any():
        return float(first.any() == second.any())
    near = max(1.0, TOLERANCE * float(np.hypot(*first.shape)))
    precision, recall = _share_near(first, second, near), _share_near(second, first, near)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def structural_similarity(seen: Rgb, asked: Rgb, where: Mask | None = None) -> float:
    """SSIM (Wang et al. 2004, Eq. 13) of the greys, its mean over the picture or over a mask (h, w); 1 is the same."""
    first, second = (cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY).astype(np.float64) for picture in (seen, asked))
    mean_1, mean_2 = _blurred(first), _blurred(second)
    variance_1, variance_2 = _blurred(first * first) - mean_1**2, _blurred(second * second) - mean_2**2
    covariance = _blurred(first * second) - mean_1 * mean_2
    luminance = (2 * mean_1 * mean_2 + SMALL_MEAN) / (mean_1**2 + mean_2**2 + SMALL_MEAN)
    structure = (2 * covariance + SMALL_VARIANCE) / (variance_1 + variance_2 + SMALL_VARIANCE)
    return _mean(luminance * structure, where)


def root_mean_square(seen: Rgb, asked: Rgb, where: Mask | None = None) -> float:
    """Root of the mean squared difference in grey levels, 0 to 255, over all channels."""
    squares = np.square(seen.astype(np.float64) - asked).mean(axis=2)
    return float(np.sqrt(_mean(squares, where)))


def same_direction(seen: Rgb, asked: Rgb) -> float:
    """Mean cosine of the angle between normals that are stored as 127.5 n + 127.5; at least 0."""
    first, second = (picture.astype(np.float64) / 127.5 - 1 for picture in (seen, asked))
    lengths = np.linalg.norm(first, axis=2) * np.linalg.norm(second, axis=2)
    return max(0.0, float(np.mean((first * second).sum(axis=2) / np.maximum(lengths, 1e-6))))


def keypoint_similarity(seen: People, asked: People) -> float:
    """COCO's object keypoint similarity, mean over the asked people, each matched with the seen one that fits best.

    exp(-d^2 / (2 s^2 (2 sigma)^2)), mean over the asked joints; joints and people that are not seen count 0. 1 where
    nobody is asked for and nobody is seen.
    """
    if not asked.people:
        return float(not seen.people)
    similarity = np.array([[_oks(found, person) for found in seen.people] for person in asked.people])
    total, rest = 0.0, similarity.reshape(len(asked.people), len(seen.people))
    while rest.size:
        row, column = np.unravel_index(int(rest.argmax()), rest.shape)
        total += float(rest[row, column])
        rest = np.delete(np.delete(rest, row, axis=0), column, axis=1)
    return total / len(asked.people)


def _oks(seen: Person, asked: Person) -> float:
    joints = [(number, point) for number, point in enumerate(asked.body) if point]
    if not joints:
        return 0.0
    places = np.array([(point.x, point.y) for _, point in joints])
    area = max(1.0, AREA_OF_BOX * float(np.prod(np.ptp(places, axis=0))))
    scores: Sequence[float] = [
        float(np.exp(-((found.x - x) ** 2 + (found.y - y) ** 2) / (2 * area * (2 * BODY_DEVIATIONS[number]) ** 2)))
        for (number, _), (x, y) in zip(joints, places, strict=True)
        if (found := seen.body[number])
    ]
    return sum(scores) / len(joints)


def _share_near(points: Mask, others: Mask, distance: float) -> float:
    """Share of the points that have one of the others within a distance in pixels."""
    away = cv2.distanceTransform((~others).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return float((away[points] <= distance).mean())


def _blurred(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(cv2.GaussianBlur(values, (WINDOW, WINDOW), DEVIATION, borderType=cv2.BORDER_REFLECT))


def _mean(values: NDArray[np.float64], where: Mask | None) -> float:
    return float(values.mean() if where is None else values[where].mean() if where.any() else 1.0)
