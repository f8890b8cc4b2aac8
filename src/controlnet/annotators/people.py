"""What all annotators of people have in common, however they find them."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from controlnet.annotators.annotator import Meaning, NetworkAnnotator
from controlnet.annotators.hands import LEFT, RIGHT, hand_joints, hand_square
from controlnet.annotators.openpose_json import to_openpose_json
from controlnet.annotators.skeleton import People, Style, draw
from controlnet.images import Rgb, Source

if TYPE_CHECKING:
    from controlnet.annotators.hand_network import HandNetwork


@dataclass(frozen=True, kw_only=True)
class PeopleAnnotator(NetworkAnnotator):
    """Skeletons of people: OpenPose's 18 keypoints and the limbs between them."""

    meaning: ClassVar[Meaning] = Meaning(
        "pose",
        polarity="none",
        values="a colour for each joint and limb",
        models=("lllyasviel/sd-controlnet-openpose", "lllyasviel/control_v11p_sd15_openpose"),
    )

    style: Style = "original"
    """As ControlNet 1.0 drew, or as the annotators since 1.1: what the control was trained on."""
    hands: bool = False
    """Look at hands too, by OpenPose's hand network, whose weights are not for commerce."""

    @cached_property
    def hand_network(self) -> "HandNetwork":
        from controlnet.annotators.hand_network import HandNetwork
        from controlnet.annotators.tensors import loaded

        return loaded(HandNetwork(), "openpose_hand", self)

    @abstractmethod
    def find(self, pictures_bhwc: NDArray[np.uint8]) -> list[People]:
        """The bodies of the people of pictures of one size."""

    def look(self, pictures_bhwc: NDArray[np.uint8]) -> list[People]:
        """The people of pictures of one size, with their hands if asked for."""
        found = self.find(pictures_bhwc)
        if not self.hands:
            return found
        return [self._with_hands(picture, people) for picture, people in zip(pictures_bhwc, found, strict=True)]

    def _with_hands(self, picture: Rgb, people: People) -> People:
        places = {
            (number, side): square
            for number, person in enumerate(people.people)
            for side in (LEFT, RIGHT)
            if (square := hand_square(person.body, side, people.size))
        }
        heats = self.hand_network.look([square.cut(picture) for square in places.values()])
        hands = {place: hand_joints(heat, square) for (place, square), heat in zip(places.items(), heats, strict=True)}
        with_hands = (
            replace(person, left_hand=hands.get((number, LEFT), ()), right_hand=hands.get((number, RIGHT), ()))
            for number, person in enumerate(people.people)
        )
        return replace(people, people=tuple(with_hands))

    def keypoints(self, picture: Rgb | Source) -> People:
        """The people of one picture, in its own pixels, to be edited and drawn by `skeleton.draw`."""
        rgb = self.read(picture)
        return self.look(self.at_resolution(rgb)[None])[0].resized((rgb.shape[1], rgb.shape[0]))

    def annotate_all(self, pictures_bhwc: NDArray[np.uint8]) -> Sequence[Rgb]:
        return [hint for hint, _ in self.annotate_detailed(pictures_bhwc)]

    def annotate_detailed(self, pictures_bhwc: NDArray[np.uint8]) -> Sequence[tuple[Rgb, dict[str, Any]]]:
        """The hints, each with its people as OpenPose's JSON."""
        return [(draw(people, self.style), to_openpose_json(people)) for people in self.look(pictures_bhwc)]
