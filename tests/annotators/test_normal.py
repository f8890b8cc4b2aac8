"""Normals: the original's numbers, where the axes point, and the networks end to end on tiny random weights."""

import numpy as np
import pytest

import tiny_networks
from controlnet.annotators.normal import Normal, normal_map, normals_of_depth
from parity.annotators import original


@pytest.fixture(scope="module")
def weights_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    for model in ("dpt_hybrid", "tipsv2"):
        tiny_networks.save(model, folder)
    return folder


def normal(weights_dir, **options):
    return Normal(weights_dir=weights_dir, device="cpu", detect_resolution=64, **options)


def photo(height=64, width=64, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(("background", "strength"), [(0.0, 6.2), (0.1, 2 * np.pi), (0.4, 2 * np.pi)])
def test_normals_of_depth_are_the_originals_bit_for_bit(background, strength):
    hint = normal_map(normals_of_depth(original("normal.depth_raw"), background, strength))
    assert np.array_equal(hint, original(f"normal.bg_{background}"))


def test_the_defaults_are_the_originals(weights_dir):
    assert (normal(weights_dir).background, normal(weights_dir).strength) == (0.4, 2 * np.pi)
    assert Normal().detect_resolution == 384


LEFT, UP, VIEWER = 0, 1, 2
RAMP = np.tile(np.linspace(0, 1000, 9, dtype=np.float32), (9, 1))


@pytest.mark.parametrize(
    ("depth", "axis", "is_positive"),
    [(RAMP, LEFT, True), (RAMP[:, ::-1], LEFT, False), (RAMP.T, UP, True), (RAMP.T[::-1], UP, False)],
)
def test_a_wall_faces_away_from_its_nearer_edge(depth, axis, is_positive):
    """Nearer on the right: it faces left. Nearer below, like a floor: it faces up."""
    middle = normals_of_depth(np.ascontiguousarray(depth), background=0)[4, 4]
    assert (middle[axis] > 0) == is_positive
    assert middle[1 - axis] == 0


def test_the_background_and_depth_that_is_the_same_everywhere_face_the_viewer():
    towards_viewer = [127, 127, 255]
    hint = normal_map(normals_of_depth(RAMP, background=0.5))
    assert (hint[:, :4] == towards_viewer).all()
    assert (hint[:, 4:8, LEFT] > 127).all()
    assert (normal_map(normals_of_depth(np.ones((4, 5), np.float32))) == towards_viewer).all()


def test_a_smaller_strength_leans_normals_further():
    leaning = [normal_map(normals_of_depth(RAMP, 0, strength))[4, 4, LEFT] for strength in (5000, 500, 50)]
    assert leaning == sorted(leaning)
    assert leaning[0] < leaning[-1]


def test_normals_have_length_one_whatever_the_networks_scale():
    normals = np.random.default_rng(0).normal(size=(8, 8, 3)).astype(np.float32)
    lengths = np.linalg.norm(normal_map(1000 * normals) / 127.5 - 1, axis=-1)
    assert np.allclose(lengths, 1, atol=0.02)
    assert (normal_map(np.zeros((2, 2, 3), np.float32)) == 127).all()


@pytest.mark.parametrize("model", ["dpt_hybrid", "tipsv2"])
def test_channel_orders_are_each_others_reverse_and_the_meaning_says_which(weights_dir, model):
    shown, fed = (normal(weights_dir, model=model, channel_order=order) for order in ("RGB", "BGR"))
    assert np.array_equal(shown(photo()), fed(photo())[..., ::-1])
    assert (shown.hint_meaning().channel_order, fed.hint_meaning().channel_order) == ("RGB", "BGR")
    assert fed.hint_meaning().models == ("lllyasviel/sd-controlnet-normal",)


def test_hints_are_in_the_order_that_controls_take_once_loaded(weights_dir):
    """Whatever a control learned on, loading it turns its first layer to RGB."""
    assert Normal().channel_order == Normal().hint_meaning().channel_order == "RGB"


@pytest.mark.parametrize("model", ["dpt_hybrid", "tipsv2"])
def test_a_batch_gives_what_one_by_one_gives_within_one_level(weights_dir, model):
    pictures = [photo(seed=1), photo(70, 140, seed=2), photo(seed=3), np.full((64, 64, 3), 9, np.uint8)]
    annotator = normal(weights_dir, model=model, background=0.0)
    together = annotator.batch(pictures)
    apart = [annotator(picture) for picture in pictures]
    assert max(np.abs(a.astype(int) - b).max() for a, b in zip(together, apart, strict=True)) <= 1
    assert [hint.shape for hint in together] == [(64, 64, 3), (64, 128, 3), (64, 64, 3), (64, 64, 3)]


def test_background_and_strength_change_normals_of_depth_only(weights_dir):
    options = [dict(background=0.0, strength=0.1), dict(background=1.0, strength=20.0)]
    of_depth = [normal(weights_dir, **each)(photo()) for each in options]
    of_network = [normal(weights_dir, model="tipsv2", **each)(photo()) for each in options]
    assert not np.array_equal(*of_depth)
    assert np.array_equal(*of_network)
