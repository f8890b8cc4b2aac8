"""Poses: crops and keypoints as transformers has them, and both networks end to end on tiny random weights."""

import numpy as np
import pytest
import torch
import transformers
from transformers.models.vitpose.modeling_vitpose import VitPoseEstimatorOutput

import tiny_networks
from controlnet.annotators.heatmaps import Box, crop, keypoints, window_around
from controlnet.annotators.openpose_json import from_openpose_json
from controlnet.annotators.pixels import IMAGENET, normalised
from controlnet.annotators.pose import Pose
from controlnet.annotators.pose_network import PersonDetector
from controlnet.annotators.skeleton import draw
from controlnet.errors import UserError

CROP = (192, 256)
ASPECT = CROP[0] / CROP[1]


@pytest.fixture(scope="module")
def weights_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    for model in ("person_detector", "vitpose"):
        tiny_networks.save(model, folder)
    return folder


@pytest.fixture(scope="module")
def pose(weights_dir):
    """Random networks are sure of nothing: thresholds of nearly zero show what they see."""
    return Pose(weights_dir=weights_dir, device="cpu", detect_resolution=64, person_threshold=0.05, joint_threshold=0.0)


def photo(height=64, width=64, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def smooth_photo(height, width):
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 / width, y * 255 / height, (x + y) % 256], -1).astype(np.uint8)


BOXES = [Box(100, 50, 260, 400), Box(10.5, 20, 300, 120.25), Box(-20, 300, 60, 470)]


def as_transformers_wants(boxes):
    return [[[box.left, box.top, box.right - box.left, box.bottom - box.top] for box in boxes]]


def gaussians(centres_nk2, size=(48, 64), sigma=2.0):
    x, y = np.arange(size[0]), np.arange(size[1])[:, None]
    squares = (x - centres_nk2[..., 0, None, None]) ** 2 + (y - centres_nk2[..., 1, None, None]) ** 2
    return np.exp(-squares / (2 * sigma**2)).astype(np.float32)


def test_crops_are_those_of_vitposes_own_image_processor():
    picture = smooth_photo(500, 400)
    theirs = transformers.VitPoseImageProcessorPil()(picture, boxes=as_transformers_wants(BOXES), return_tensors="np")
    ours = np.stack([crop(picture, window_around(box, ASPECT), CROP) for box in BOXES])
    difference = np.abs(normalised(ours, IMAGENET).transpose(0, 3, 1, 2) - theirs["pixel_values"])
    assert difference.mean() < 0.005  # a third of a level
    assert np.quantile(difference, 0.99) < 0.03  # OpenCV blends the picture's border with the black beyond


def test_keypoints_are_those_of_vitposes_own_image_processor():
    heat = gaussians(np.random.default_rng(0).uniform(2, 45, (len(BOXES), 17, 2)))
    theirs = transformers.VitPoseImageProcessorPil().post_process_pose_estimation(
        VitPoseEstimatorOutput(heatmaps=torch.from_numpy(heat)), boxes=as_transformers_wants(BOXES)
    )[0]
    ours = keypoints(heat, [window_around(box, ASPECT) for box in BOXES])
    for person, each in zip(ours, theirs, strict=True):
        assert np.allclose(person[:, :2], each["keypoints"], atol=1e-2)
        assert np.allclose(person[:, 2], each["scores"])


def test_a_peak_between_pixels_is_found_between_pixels():
    window = window_around(Box(0, 0, 47 / 1.25, 63 / 1.25), 47 / 63)  # one pixel of heat is one of the picture
    centres = np.random.default_rng(1).uniform(8, 40, (1, 17, 2))
    found = keypoints(gaussians(centres), [window])[0, :, :2] - (window.left, window.top)
    assert np.abs(found - centres[0]).max() < 0.05


@pytest.mark.parametrize("heat", [np.zeros((1, 17, 64, 48)), np.random.default_rng(0).normal(size=(1, 17, 64, 48))])
def test_flat_and_noisy_heat_gives_keypoints_within_the_window_and_a_pixel(heat):
    window = window_around(BOXES[0], ASPECT)
    x, y = keypoints(heat.astype(np.float32), [window])[0, :, :2].T
    assert (x >= window.left - window.width / 47).all()
    assert (x <= window.left + window.width * 48 / 47).all()
    assert (y >= window.top - window.height / 63).all()
    assert (y <= window.top + window.height * 64 / 63).all()


def test_a_window_has_the_crops_shape_and_a_margin_of_an_eighth_on_each_side():
    window = window_around(Box(0, 0, 100, 200), ASPECT)
    assert window.width / window.height == pytest.approx(ASPECT)
    assert (window.height, window.top) == (250, -25)


def test_boxes_are_those_of_the_detectors_own_image_processor(weights_dir):
    detector, processor = PersonDetector(weights_dir), transformers.RTDetrImageProcessorPil()
    picture = smooth_photo(640, 640)
    with torch.inference_mode():
        found = detector.model(**processor(picture, return_tensors="pt"))
        found.logits[..., 1:] = -100  # people only, as ours
        [theirs] = processor.post_process_object_detection(found, threshold=0.0, target_sizes=[(640, 640)])
    [ours] = detector.find(picture[None], threshold=0.0)
    assert np.allclose(ours, theirs["boxes"].clamp(0, 640), atol=0.01)


def test_people_are_found_and_drawn(pose):
    people = pose.find(photo(64, 128)[None])[0]
    assert people.size == (128, 64)
    assert people.people
    assert np.array_equal(pose(photo(64, 128)), draw(people))


def test_a_higher_person_threshold_finds_fewer_people(pose, weights_dir):
    found = [
        len(Pose(weights_dir=weights_dir, person_threshold=threshold).keypoints(photo()).people)
        for threshold in (0.0, 0.5, 1.0)
    ]
    assert found == sorted(found, reverse=True)
    assert (found[0], found[-1]) == (20, 0)


def test_joints_below_the_threshold_are_not_seen(pose, weights_dir):
    strict = Pose(weights_dir=weights_dir, detect_resolution=64, person_threshold=0.05, joint_threshold=1.0)
    joints = [joint for person in pose.keypoints(photo()).people for joint in person.body]
    above = [joint for person in strict.keypoints(photo()).people for joint in person.body]
    assert all(joint is None or joint.score > 1.0 for joint in above)
    assert sum(joint is None for joint in above) >= sum(joint is None for joint in joints)


def test_a_batch_finds_what_one_by_one_finds(pose):
    pictures = [photo(seed=1), photo(70, 140, seed=2), photo(seed=3)]
    together = pose.batch(pictures)
    same = [(a == pose(picture)).all(-1).mean() for a, picture in zip(together, pictures, strict=True)]
    assert min(same) > 0.99


def test_a_picture_without_people_is_black_in_a_batch_too(weights_dir):
    unmoved = Pose(weights_dir=weights_dir, detect_resolution=64, person_threshold=1.0)
    assert not np.any(unmoved.batch([photo(), photo(seed=1)]))


def test_keypoints_are_in_the_pictures_own_pixels(pose):
    people = pose.keypoints(photo(100, 300))
    assert people.size == (300, 100)
    looked_at = pose.find(pose.at_resolution(photo(100, 300))[None])[0]
    assert people == looked_at.resized((300, 100))


def test_the_details_of_a_hint_are_openposes_json_that_draws_it_again(pose):
    [(hint, document)] = pose.annotate_detailed(photo()[None])
    assert np.array_equal(draw(from_openpose_json(document), pose.style), hint)


def test_the_style_changes_the_drawing_not_the_people(pose, weights_dir):
    later = Pose(
        weights_dir=weights_dir, detect_resolution=64, person_threshold=0.05, joint_threshold=0.0, style="later"
    )
    assert later.keypoints(photo()) == pose.keypoints(photo())
    assert not np.array_equal(later(photo()), pose(photo()))


@pytest.mark.parametrize("picture", [photo(1, 1), photo(7, 90), np.full((64, 64, 3), 200, np.uint8), photo()[..., 0]])
def test_tiny_long_constant_and_grey_pictures_have_a_hint(pose, picture):
    assert pose(picture).dtype == np.uint8


def test_without_weights_the_error_says_which_and_where(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="PekingU/rtdetr_r50vd_coco_o365.*--weights-dir"):
        Pose(weights_dir=tmp_path)(photo())
