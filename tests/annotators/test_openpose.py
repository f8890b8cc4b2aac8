"""OpenPose: the original's decoding, people planted and found again, and the network through a published file."""

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import formula_networks
from controlnet.annotators.openpose import OpenPose, upsampled
from controlnet.annotators.openpose_decoding import CHANNELS, MATCHED_LIMBS, decode, find_peaks
from controlnet.annotators.openpose_network import OpenPoseNetwork
from controlnet.annotators.skeleton import BODY, draw
from parity.annotators import original

# a person 60 pixels high, joints in the order of BODY
STANDING = np.array(
    [
        *((0, 0), (0, 12), (-10, 12), (-13, 24), (-14, 35), (10, 12), (13, 24), (14, 35), (-6, 36)),
        *((-6, 48), (-6, 60), (6, 36), (6, 48), (6, 60), (-3, -3), (3, -3), (-6, -1), (6, -1)),
    ]
)


def standing_at(x, y):
    return STANDING + np.array([x, y])


def planted(*people, size=(120, 160)):
    """Heat and affinities of people, each (18, 2) of x, y, or with None for a joint that is not seen."""
    y, x = np.mgrid[: size[0], : size[1]]
    heat = np.zeros((*size, 19), np.float32)
    affinity = np.zeros((*size, 38), np.float32)
    for person in people:
        for joint, place in enumerate(person):
            if place is not None:
                blob = np.exp(-((x - place[0]) ** 2 + (y - place[1]) ** 2) / 8)
                heat[..., joint] = np.maximum(heat[..., joint], blob)
        for (start, end), channel in zip(MATCHED_LIMBS, CHANNELS, strict=True):
            if person[start] is not None and person[end] is not None:
                _plant_limb(affinity[..., channel : channel + 2], np.array(person[start]), np.array(person[end]))
    return heat, affinity


def _plant_limb(affinity_hw2, start, end):
    on_limb = np.zeros(affinity_hw2.shape[:2], np.uint8)
    cv2.line(on_limb, tuple(map(int, start)), tuple(map(int, end)), 1, thickness=5)
    affinity_hw2[on_limb > 0] = (end - start) / np.linalg.norm(end - start)


def found(heat, affinity):
    """The people, leftmost nose first: for each, the place of every joint or None."""
    candidate, subset = decode(heat, affinity)
    people = [[tuple(candidate[int(j), :2]) if j >= 0 else None for j in row[:18]] for row in subset]
    return sorted(people, key=str)


class Planted(nn.Module):
    """A network that says what was planted, at the size at which it would."""

    def __init__(self, heat, affinity):
        super().__init__()
        background = np.zeros((*heat.shape[:2], 19 - heat.shape[-1]), np.float32)
        self.maps = np.concatenate([heat, background, affinity], axis=-1)
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, bgr_bchw):
        self.seen = bgr_bchw
        size = (bgr_bchw.shape[3] // 8, bgr_bchw.shape[2] // 8)
        small = [
            cv2.resize(np.ascontiguousarray(m), size, interpolation=cv2.INTER_AREA)
            for m in np.moveaxis(self.maps, -1, 0)
        ]
        return torch.from_numpy(np.stack(small))[None].expand(len(bgr_bchw), -1, -1, -1)


def with_network(network, **options):
    openpose = OpenPose(device="cpu", **options)
    openpose.__dict__["network"] = network  # where cached_property keeps it
    return openpose


@pytest.fixture
def reference():
    return Planted(original("openpose.heat"), original("openpose.paf"))


@pytest.fixture(scope="module")
def openpose(tmp_path_factory):
    with formula_networks.published(tmp_path_factory.mktemp("weights"), "openpose_body") as folder:
        openpose = OpenPose(weights_dir=folder, device="cpu", detect_resolution=64)
        assert openpose.network is openpose.network
        yield openpose


def photo(height=64, width=64, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_the_network_has_every_tensor_of_the_public_file_and_no_other():
    names = {name: tuple(tensor.shape) for name, tensor in OpenPoseNetwork().state_dict().items()}
    listed = formula_networks.shapes("openpose_body")
    assert names == {name.split(".", 1)[1]: shape for name, shape in listed.items()}


def test_the_candidates_and_people_are_the_originals(reference):
    maps = reference(torch.zeros(1, 3, 184, 232))[0].permute(1, 2, 0).numpy()
    at_picture = upsampled(maps, (184, 230), (160, 200))
    candidate, subset = decode(at_picture[..., :19], at_picture[..., 19:])
    assert np.array_equal(candidate[:, :2], original("openpose.decode.candidate")[:, :2])
    assert np.allclose(candidate, original("openpose.decode.candidate"), rtol=0, atol=1e-6)
    assert np.array_equal(subset[:, :18], original("openpose.decode.subset")[:, :18])
    assert np.allclose(subset, original("openpose.decode.subset"), rtol=0, atol=1e-5)


def test_the_annotator_finds_the_originals_people_in_a_picture(reference):
    [people] = with_network(reference).find(np.zeros((1, 160, 200, 3), np.uint8))
    candidate, subset = original("openpose.decode.candidate"), original("openpose.decode.subset")
    joints = [[(it.x, it.y) if it else None for it in person.body] for person in people.people]
    assert joints == [[tuple(candidate[int(j), :2]) if j >= 0 else None for j in row[:18]] for row in subset]
    assert people.size == (200, 160)


def test_the_network_sees_blue_first_half_the_height_it_was_trained_at_and_grey_around(reference):
    openpose = with_network(reference)
    openpose.find(np.broadcast_to(np.array([0, 64, 255], np.uint8), (1, 160, 200, 3)).copy())
    assert reference.seen.shape == (1, 3, 184, 232)  # 184 is half of 368; 232 is 230 padded to a multiple of 8
    assert torch.equal(reference.seen[0, :, 0, 0], torch.tensor([255 / 256, 64 / 256, 0]) - 0.5)
    assert not reference.seen[..., 230:].any()


def test_many_scales_find_the_same_people(reference):
    picture = np.zeros((1, 160, 200, 3), np.uint8)
    [once], [often] = (with_network(reference, many_scales=many).find(picture) for many in (False, True))
    assert len(often.people) == len(once.people) == 2
    assert reference.seen.shape[2] == 4 * 184


@pytest.mark.parametrize("style", ["original", "later"])
def test_the_hint_is_the_drawing_of_the_people_in_the_chosen_style(reference, style):
    openpose = with_network(reference, style=style, detect_resolution=0)
    picture = photo(128, 192)
    assert np.array_equal(openpose(picture), draw(openpose.find(picture[None])[0], style))


@settings(max_examples=20)
@given(st.integers(20, 139), st.integers(8, 55))
def test_a_person_is_found_wherever_it_stands(x, y):
    person = standing_at(x, y)
    assert found(*planted(person)) == [[tuple(place) for place in person]]


def test_two_people_are_kept_apart():
    people = [standing_at(40, 20), standing_at(110, 30)]
    assert found(*planted(*people)) == sorted(([tuple(place) for place in person] for person in people), key=str)


@pytest.mark.parametrize("unseen", [4, 0, 17, 10])
def test_a_person_lacks_the_joint_that_is_not_seen(unseen):
    person = [None if joint == unseen else tuple(place) for joint, place in enumerate(standing_at(80, 30))]
    assert found(*planted(person)) == [person]


def test_fewer_than_four_joints_are_no_person():
    arm = [tuple(place) if joint in (2, 3, 4) else None for joint, place in enumerate(standing_at(80, 30))]
    assert found(*planted(arm)) == []


def test_joints_without_affinities_are_no_person():
    heat, affinity = planted(standing_at(80, 30))
    candidate, subset = decode(heat, np.zeros_like(affinity))
    assert (len(candidate), subset.shape) == (18, (0, 20))


def test_affinities_against_a_limbs_direction_do_not_join_it():
    heat, affinity = planted(standing_at(80, 30))
    assert found(heat, -affinity) == []


def test_a_faint_person_is_left_out():
    heat, affinity = planted(standing_at(80, 30))
    assert len(found(0.4 * heat, 0.4 * affinity)) == 1
    assert found(0.25 * heat, 0.15 * affinity) == []


def cut(affinity, *limbs):
    """The affinities without those of some limbs."""
    affinity = affinity.copy()
    for limb in limbs:
        channel = CHANNELS[MATCHED_LIMBS.index(limb)]
        affinity[..., channel : channel + 2] = 0
    return affinity


def test_a_leg_that_nothing_joins_to_the_body_is_left_out():
    heat, affinity = planted(standing_at(80, 30))
    [body] = found(heat, cut(affinity, (1, 8)))
    assert [joint for joint, place in enumerate(body) if place is None] == [8, 9, 10]


def test_an_arm_apart_from_the_neck_belongs_to_the_person_of_the_ear_above_it():
    """Shoulder and ear are a limb for that only."""
    person = standing_at(80, 30)
    heat, affinity = planted(person)
    assert found(heat, cut(affinity, (1, 2))) == [[tuple(place) for place in person]]
    [body] = found(heat, cut(affinity, (1, 2), (2, 16)))
    assert [joint for joint, place in enumerate(body) if place is None] == [2, 3, 4]


def test_a_peak_is_higher_than_its_surroundings_and_keeps_the_heat_before_the_blur():
    heat = np.zeros((40, 40), np.float32)
    heat[8:11, 20:23] = 0.5
    heat[9, 21] = 1.0
    heat = cv2.GaussianBlur(heat, (0, 0), 3) * 20
    assert find_peaks(heat).tolist() == [[21, 9, pytest.approx(heat[9, 21])]]


def test_heat_under_a_tenth_is_no_peak():
    assert len(find_peaks(np.full((40, 40), 0.0999, np.float32))) == 0


def test_an_empty_picture_has_no_people(openpose):
    assert decode(np.zeros((8, 8, 19)), np.zeros((8, 8, 38)))[0].shape == (0, 4)


def test_the_network_of_a_published_file_is_that_of_its_tensors(openpose):
    by_hand = OpenPoseNetwork().eval()
    by_hand.load_state_dict(formula_networks.openpose_body())
    x = torch.rand(1, 3, 48, 64) - 0.5
    with torch.inference_mode():
        assert torch.equal(openpose.network(x), by_hand(x))
    assert openpose.network(x).shape == (1, 57, 6, 8)


def test_a_batch_finds_the_people_of_one_by_one(openpose):
    pictures = np.stack([photo(seed=1), photo(seed=2)])
    assert openpose.find(pictures) == [openpose.find(picture[None])[0] for picture in pictures]


def test_the_limbs_lie_between_joints_of_the_body_and_have_channels_of_their_own():
    assert {joint for limb in MATCHED_LIMBS for joint in limb} == set(range(len(BODY)))
    assert sorted(CHANNELS) == list(range(0, 38, 2))
