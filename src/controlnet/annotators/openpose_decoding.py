"""From OpenPose's maps to people: peaks of the heat are joints, part affinities tell which of them belong together
(Cao et al. 2017, "Realtime Multi-Person 2D Pose Estimation using Part Affinity Fields", section 2; the numbers are
those of the demonstration that came with it).
"""

# h w size of the picture, k keypoints, n m joints at a limb's two ends, s samples along it
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from controlnet.annotators.skeleton import BODY, LIMBS

Floats = NDArray[np.floating[Any]]

HEATS, AFFINITIES = 19, 38  # 18 keypoints and "none of them"; x and y for each of 19 limbs
SIGMA = 3.0  # pixels, of the blur before peaks are looked for
BLUR_RADIUS = 12  # four sigmas
LOWEST_PEAK = 0.1
SAMPLES = 10  # along a limb
LOWEST_AFFINITY = 0.05
ENOUGH_SAMPLES = 0.8  # of them must have more than that
FEWEST_JOINTS, LOWEST_MEAN_SCORE = 4, 0.4  # of a person

# limb -> the first of its two channels; the last two limbs, shoulder to ear, join people and are never drawn
MATCHED_LIMBS: tuple[tuple[int, int], ...] = (*LIMBS, (2, 16), (5, 17))
CHANNELS = (12, 20, 14, 16, 22, 24, 0, 2, 4, 6, 8, 10, 28, 30, 34, 32, 36, 18, 26)


@dataclass
class Found:
    """A person while being put together."""

    joints: NDArray[np.int64]
    """(18,) numbers of candidates, -1 where there is none."""
    score: float
    """Sum over joints and limbs."""
    count: int


@dataclass(frozen=True)
class Connection:
    """A limb: two candidates and how well the affinities between them speak for it."""

    start: int
    end: int
    score: float


def decode(heat_hwk: Floats, affinity_hwc: Floats) -> tuple[Floats, Floats]:
    """Heat (h, w, 18 or more) and affinities (h, w, 38) -> candidate (n, 4) and subset (people, 20).

    A row of `candidate` is x, y in pixels, score, number. The first 18 of a row of `subset` are the person's joints as
    numbers of candidates, -1 where not seen; then come the total score and the number of joints.
    """
    joints = [find_peaks(heat_hwk[..., joint]) for joint in range(len(BODY))]
    stacked = np.concatenate(joints)
    candidate = np.column_stack([stacked, np.arange(len(stacked))])
    first = np.cumsum([0, *map(len, joints)])
    people: list[Found] = []
    for limb, ((start, end), channel) in enumerate(zip(MATCHED_LIMBS, CHANNELS, strict=True)):
        connections = connect(joints[start], joints[end], affinity_hwc[..., channel : channel + 2])
        for each in connections:
            connection = Connection(int(first[start] + each.start), int(first[end] + each.end), each.score)
            people = attach(people, connection, (start, end), candidate[:, 2], may_begin=limb < len(LIMBS))
    rows = [[*person.joints, person.score, person.count] for person in people if _is_person(person)]
    return candidate, np.array(rows, dtype=np.float64).reshape(-1, len(BODY) + 2)


def find_peaks(heat_hw: Floats) -> Floats:
    """The local maxima of one joint's blurred heat, row by row: (n, 3) of x, y and the heat before the blur."""
    kernel = np.exp(-0.5 * (np.arange(-BLUR_RADIUS, BLUR_RADIUS + 1) / SIGMA) ** 2)
    kernel /= kernel.sum()
    # OpenCV's "reflect" repeats the edge pixel
    blurred = cv2.sepFilter2D(heat_hw.astype(np.float64), -1, kernel, kernel, borderType=cv2.BORDER_REFLECT)
    framed = np.pad(blurred, 1)
    neighbours = (framed[:-2, 1:-1], framed[2:, 1:-1], framed[1:-1, :-2], framed[1:-1, 2:])
    is_peak = blurred > LOWEST_PEAK
    for neighbour in neighbours:
        is_peak &= blurred >= neighbour
    y, x = np.nonzero(is_peak)
    return np.column_stack([x, y, heat_hw[y, x]]).astype(np.float64)


def connect(starts: Floats, ends: Floats, affinity_hw2: Floats) -> list[Connection]:
    """The limbs between joints (n, 3) and (m, 3), best first, no joint in two of them."""
    if not len(starts) or not len(ends):
        return []
    scores, is_limb = score_limbs(starts[:, :2], ends[:, :2], affinity_hw2)
    pairs = np.argwhere(is_limb)
    order = np.argsort(-scores[is_limb], kind="stable")
    chosen: list[Connection] = []
    taken_starts: set[int] = set()
    taken_ends: set[int] = set()
    for start, end in pairs[order].tolist():
        if start not in taken_starts and end not in taken_ends:
            chosen.append(Connection(start, end, float(scores[start, end])))
            taken_starts.add(start)
            taken_ends.add(end)
    return chosen


def score_limbs(starts_n2: Floats, ends_m2: Floats, affinity_hw2: Floats) -> tuple[Floats, NDArray[np.bool_]]:
    """How well the affinity points from each start to each end, (n, m), less what is longer than half the picture is
    high; and whether that makes a limb."""
    vectors = ends_m2[None] - starts_n2[:, None]
    lengths = np.maximum(np.linalg.norm(vectors, axis=-1), 0.001)
    steps = np.linspace(0, 1, SAMPLES)[:, None]
    x, y = np.moveaxis(np.rint(starts_n2[:, None, None] + steps * vectors[:, :, None]).astype(int), -1, 0)
    along_nms = np.einsum("nmsd,nmd->nms", affinity_hw2[y, x].astype(np.float64), vectors / lengths[..., None])
    scores = along_nms.mean(-1) + np.minimum(0.5 * len(affinity_hw2) / lengths - 1, 0)
    is_steady = (along_nms > LOWEST_AFFINITY).sum(-1) > ENOUGH_SAMPLES * SAMPLES
    return scores, is_steady & (scores > 0)


def attach(people: list[Found], limb: Connection, ends: tuple[int, int], heat: Floats, may_begin: bool) -> list[Found]:
    """The people after a limb was given to those who own one of its joints; `ends` says which joints it joins.

    Owned by nobody, it begins a new person, if it may; owned by two who share no joint, it makes them one.
    """
    start, end = ends
    match [person for person in people if person.joints[start] == limb.start or person.joints[end] == limb.end]:
        case []:
            return [*people, _begin(limb, ends, heat)] if may_begin else people
        case [owner] if owner.joints[end] == limb.end:
            return people
        case [first, second, *_] if not np.any((first.joints >= 0) & (second.joints >= 0)):
            first.joints = np.maximum(first.joints, second.joints)
            first.score += second.score + limb.score
            first.count += second.count
            return [person for person in people if person is not second]
        case [owner, *_]:
            owner.joints[end] = limb.end
            owner.score += heat[limb.end] + limb.score
            owner.count += 1
            return people
    raise AssertionError("a list is empty or has a first element")


def _begin(limb: Connection, ends: tuple[int, int], heat: Floats) -> Found:
    joints = np.full(len(BODY), -1)
    joints[list(ends)] = limb.start, limb.end
    return Found(joints, heat[limb.start] + heat[limb.end] + limb.score, count=2)


def _is_person(person: Found) -> bool:
    return person.count >= FEWEST_JOINTS and person.score / person.count >= LOWEST_MEAN_SCORE
