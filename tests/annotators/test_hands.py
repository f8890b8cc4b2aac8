"""Hands: where they are looked for, what their heat says, and the network through a published file."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import nn

import formula_networks
from controlnet.annotators.hand_network import HandNetwork
from controlnet.annotators.hands import LEFT, RIGHT, Square, hand_joints, hand_square
from controlnet.annotators.openpose_json import from_openpose_json
from controlnet.annotators.people import PeopleAnnotator
from controlnet.annotators.skeleton import BODY, HAND_POINTS, Keypoint, People, Person, draw
from controlnet.annotators.weights import WEIGHTS, load_network
from controlnet.checkpoints.models import sha256

SIZE = (400, 300)


def body(**joints):
    """A body of which only some joints are seen, named with underscores."""
    return tuple(joints.get(name.replace(" ", "_")) for name in BODY)


STRETCHED = body(right_shoulder=Keypoint(100, 150), right_elbow=Keypoint(160, 150), right_wrist=Keypoint(220, 150))


def test_a_hand_is_looked_for_beyond_the_wrist_in_a_square_half_as_wide_again_as_the_forearm():
    left, top, side = hand_square(STRETCHED, RIGHT, SIZE)
    assert side == 90
    assert (left + side / 2, top + side / 2) == pytest.approx((220 + 20, 150), abs=1)


def test_a_foreshortened_forearm_is_taken_from_the_upper_arm():
    pointing = body(right_shoulder=Keypoint(100, 150), right_elbow=Keypoint(160, 150), right_wrist=Keypoint(161, 150))
    assert hand_square(pointing, RIGHT, SIZE).side == int(1.5 * 0.9 * 60)


@pytest.mark.parametrize("missing", ["right shoulder", "right elbow", "right wrist"])
def test_an_arm_that_is_not_wholly_seen_has_no_hand(missing):
    seen = tuple(None if name == missing else joint for name, joint in zip(BODY, STRETCHED, strict=True))
    assert hand_square(seen, RIGHT, SIZE) is None
    assert hand_square(STRETCHED, LEFT, SIZE) is None


def test_a_square_stays_within_the_picture_and_is_none_where_less_than_20_pixels_are_left():
    left, _, side = hand_square(STRETCHED, RIGHT, (250, 300))
    assert left + side == 250
    assert hand_square(STRETCHED, RIGHT, (210, 300)) is None
    assert hand_square(STRETCHED, RIGHT, (250, 120)) is None


def blob(x, y, height=1.0, side=90, sigma=3.0):
    across, down = np.meshgrid(np.arange(side), np.arange(side))
    return height * np.exp(-((across - x) ** 2 + (down - y) ** 2) / (2 * sigma**2))


def test_joints_are_where_their_heat_is():
    places = [(10 + 3 * joint, 80 - 3 * joint) for joint in range(HAND_POINTS)]
    heat = np.stack([blob(*place, height=0.9) for place in places] + [np.zeros((90, 90))], axis=-1)
    found = hand_joints(heat, Square(200, 100, 90))
    assert [(joint.x - 200, joint.y - 100) for joint in found] == places
    assert all(joint.score == pytest.approx(0.9, abs=0.01) for joint in found)


def test_a_joint_without_heat_is_not_seen():
    heat = np.zeros((90, 90, 22))
    heat[..., 3] = blob(40, 40)
    assert [joint is not None for joint in hand_joints(heat, Square(0, 0, 90))] == [n == 3 for n in range(HAND_POINTS)]


def test_a_large_patch_of_heat_outweighs_a_hotter_small_one():
    heat = np.zeros((90, 90, 22))
    heat[..., 0] = blob(20, 20, height=0.6, sigma=6) + blob(70, 70, height=0.9, sigma=2)
    found = hand_joints(heat, Square(0, 0, 90))[0]
    assert (found.x, found.y) == (20, 20)


class Planted(HandNetwork):
    """A network that sees joint i in row i of the crop, in the middle."""

    def __init__(self):
        nn.Module.__init__(self)
        self.weight = nn.Parameter(torch.zeros(1))
        self.sides = []

    def forward(self, bgr_bchw):
        side = bgr_bchw.shape[-1] // 8
        self.sides.append(bgr_bchw.shape[-1])
        rows = torch.arange(side).view(1, -1, 1)
        centre = (torch.arange(22).view(-1, 1, 1) + 1) * side / 23 - 0.5
        columns = torch.arange(side).view(1, 1, -1)
        heat = torch.exp(-((rows - centre) ** 2 + (columns - side / 2 + 0.5) ** 2) / (side / 12) ** 2)
        return heat.expand(len(bgr_bchw), -1, -1, -1)


@dataclass(frozen=True, kw_only=True)
class Fixed(PeopleAnnotator):
    """Knows where people are."""

    def find(self, pictures_bhwc):
        size = (pictures_bhwc.shape[2], pictures_bhwc.shape[1])
        return [People(size, (Person(STRETCHED), Person((None,) * 18))) for _ in pictures_bhwc]


def fixed(**options):
    annotator = Fixed(device="cpu", detect_resolution=0, **options)
    annotator.__dict__["hand_network"] = Planted()
    return annotator


PICTURE = np.zeros((320, 448, 3), np.uint8)


def test_hands_are_found_at_the_ends_of_arms_if_asked_for():
    [armed, unseen] = fixed(hands=True).keypoints(PICTURE).people
    square = hand_square(STRETCHED, RIGHT, (448, 320))
    assert len(armed.right_hand) == HAND_POINTS
    assert all(abs(joint.x - square.left - square.side / 2) < 2 for joint in armed.right_hand)
    assert [joint.y for joint in armed.right_hand] == sorted(joint.y for joint in armed.right_hand)
    assert armed.left_hand == unseen.left_hand == unseen.right_hand == ()
    assert fixed().keypoints(PICTURE).people[0].right_hand == ()


def test_hands_are_seen_at_openposes_four_sizes():
    annotator = fixed(hands=True)
    annotator(PICTURE)
    assert annotator.hand_network.sides == [184, 368, 552, 736]


def test_hands_are_drawn_and_in_the_json():
    annotator = fixed(hands=True)
    [(hint, document)] = annotator.annotate_detailed(PICTURE[None])
    people = from_openpose_json(document)
    assert len(people.people[0].right_hand) == HAND_POINTS
    assert np.array_equal(draw(people), hint)
    assert not np.array_equal(draw(people, hands=False), hint)
    assert "hand_left_keypoints_2d" not in document["people"][0]


@pytest.fixture
def published(tmp_path, monkeypatch):
    """The file with formula weights, in half precision, as it is large."""
    shapes = {name: tuple(it.shape) for name, it in HandNetwork().state_dict().items()}
    tensors = {name: it.half() for name, it in formula_networks.formula("hand", shapes).items()}
    path = formula_networks.save("openpose_hand", tmp_path, tensors)
    monkeypatch.setitem(WEIGHTS, "openpose_hand", replace(WEIGHTS["openpose_hand"], sha256=sha256(path)))
    return tmp_path, tensors


def test_the_network_of_a_published_file_is_that_of_its_tensors(published):
    folder, tensors = published
    network = load_network(HandNetwork(), "openpose_hand", folder)
    assert all(torch.equal(network.state_dict()[name], it.float()) for name, it in tensors.items())
    with torch.inference_mode():
        assert network(torch.rand(1, 3, 64, 64) - 0.5).shape == (1, 22, 8, 8)


def test_the_network_is_as_large_as_its_published_file():
    """hand_pose_model.pth has 147,341,049 bytes, some of which say names and shapes."""
    tensors = HandNetwork().state_dict().values()
    assert 0 < 147_341_049 - sum(4 * it.numel() for it in tensors) < 200 * len(tensors)


def test_each_stage_sees_the_one_before():
    """A change of the first stage's last bias moves the last stage's heat."""
    torch.manual_seed(0)
    network, picture = HandNetwork(), torch.rand(1, 3, 16, 16) - 0.5
    with torch.inference_mode():
        before = network(picture)
        network["conv6_2_CPM"].bias += 1
        assert not torch.equal(network(picture), before)
        network["Mconv7_stage6"].bias += 1
        assert torch.allclose(network(picture) - before, torch.ones(1), atol=0.5)
