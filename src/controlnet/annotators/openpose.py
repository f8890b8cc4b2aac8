"""People by OpenPose's body network (Cao et al. 2017), for those who have its weights; they are not for commerce."""

# b batch, h w picture size
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray

from controlnet.annotators.openpose_decoding import HEATS, Floats, decode
from controlnet.annotators.people import PeopleAnnotator
from controlnet.annotators.skeleton import People, from_candidates
from controlnet.images import Rgb

if TYPE_CHECKING:
    from controlnet.annotators.openpose_network import OpenPoseNetwork

BOX_HEIGHT = 368  # pixels, of the pictures that the network was trained on
ONE_SCALE, SCALES = (0.5,), (0.5, 1.0, 1.5, 2.0)  # of that; ControlNet's, and those of OpenPose's demonstration
STRIDE = 8  # pixels of the picture to one of the maps
GREY = 128  # what pads it


@dataclass(frozen=True, kw_only=True)
class OpenPose(PeopleAnnotator):
    """Skeletons of people, by OpenPose."""

    many_scales: bool = False
    """Look at four sizes instead of one: finds smaller people, takes thirty times as long."""

    @cached_property
    def network(self) -> "OpenPoseNetwork":
        from controlnet.annotators.openpose_network import OpenPoseNetwork
        from controlnet.annotators.tensors import loaded

        return loaded(OpenPoseNetwork(), "openpose_body", self)

    def find(self, pictures_bhwc: NDArray[np.uint8]) -> list[People]:
        """The people of pictures of one size."""
        height, width = pictures_bhwc.shape[1:3]
        scales = SCALES if self.many_scales else ONE_SCALE
        of_pictures = zip(*map(partial(self.maps, pictures_bhwc), scales), strict=True)
        averages = (np.mean(of_scales, axis=0) for of_scales in of_pictures)
        return [from_candidates(*decode(*np.split(maps, [HEATS], axis=-1)), (width, height)) for maps in averages]

    def maps(self, pictures_bhwc: NDArray[np.uint8], scale: float) -> Iterator[Floats]:
        """Heat and affinities (h, w, 19 + 38) of each picture in turn, seen at `scale` of the training's height."""
        from controlnet.annotators.tensors import run

        height, width = pictures_bhwc.shape[1:3]
        seen = np.stack([_seen(picture, scale * BOX_HEIGHT / height) for picture in pictures_bhwc])
        below, right = (-side % STRIDE for side in seen.shape[1:3])
        padded = np.pad(seen, [(0, 0), (0, below), (0, right), (0, 0)], constant_values=GREY)
        bgr_bhwc = padded[..., ::-1] / np.float32(256) - np.float32(0.5)
        maps_bhwc = np.moveaxis(run(self.network, bgr_bhwc), 1, -1)
        return (upsampled(maps, seen.shape[1:3], (height, width)) for maps in maps_bhwc)


def upsampled(maps_hwc: Floats, seen: tuple[int, ...], size: tuple[int, int]) -> Floats:
    """The network's maps at the picture's `size` (height, width), of which it saw one resized to `seen`."""
    at_seen = cv2.resize(maps_hwc, (0, 0), fx=STRIDE, fy=STRIDE, interpolation=cv2.INTER_CUBIC)[: seen[0], : seen[1]]
    return np.asarray(cv2.resize(at_seen, size[::-1], interpolation=cv2.INTER_CUBIC))


def _seen(picture: Rgb, scale: float) -> Rgb:
    return np.asarray(cv2.resize(picture, (0, 0), fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC))
