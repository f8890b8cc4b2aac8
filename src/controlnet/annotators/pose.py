"""Poses of people by networks of transformers."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Annotated

import numpy as np
from numpy.typing import NDArray

from controlnet.annotators.annotator import Range
from controlnet.annotators.people import PeopleAnnotator
from controlnet.annotators.skeleton import Keypoint, People, Person, from_coco17

if TYPE_CHECKING:
    from controlnet.annotators.pose_network import PersonDetector, PoseNetwork


@dataclass(frozen=True, kw_only=True)
class Pose(PeopleAnnotator):
    """Skeletons of people: RT-DETR finds them, ViTPose their joints; the neck is the middle of seen shoulders."""

    person_threshold: Annotated[float, Range(0, 1, 0.01)] = 0.5
    """How sure it must be that there is a person."""
    joint_threshold: Annotated[float, Range(0, 1, 0.01)] = 0.3
    """How sure it must be where a joint is."""

    @cached_property
    def person_detector(self) -> "PersonDetector":
        from controlnet.annotators.pose_network import PersonDetector
        from controlnet.annotators.tensors import placed

        return placed(PersonDetector(self.weights_dir), self)

    @cached_property
    def pose_network(self) -> "PoseNetwork":
        from controlnet.annotators.pose_network import PoseNetwork
        from controlnet.annotators.tensors import placed

        return placed(PoseNetwork(self.weights_dir), self)

    def find(self, pictures_bhwc: NDArray[np.uint8]) -> list[People]:
        boxes = self.person_detector.find(pictures_bhwc, self.person_threshold)
        of_picture = [number for number, found in enumerate(boxes) for _ in found]
        joints_nk3 = self.pose_network.find(pictures_bhwc[of_picture], list(chain.from_iterable(boxes)))
        everyone: list[list[Person]] = [[] for _ in pictures_bhwc]
        for number, joints in zip(of_picture, joints_nk3, strict=True):
            everyone[number].append(Person(from_coco17(self._seen(joints))))
        size = (pictures_bhwc.shape[2], pictures_bhwc.shape[1])
        return [People(size, tuple(people)) for people in everyone]

    def _seen(self, joints_k3: NDArray[np.float32]) -> Sequence[Keypoint | None]:
        return [Keypoint(*map(float, joint)) if joint[2] > self.joint_threshold else None for joint in joints_k3]
