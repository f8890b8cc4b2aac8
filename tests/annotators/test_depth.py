"""Depth: the original's numbers, and the networks end to end on tiny random weights in their true format."""

import numpy as np
import pytest
import torch
import transformers

import tiny_networks
from controlnet.annotators.dense_network import DenseNetwork
from controlnet.annotators.depth import Depth, depth_map, nearness
from parity.annotators import original

MODELS = ("dpt_hybrid", "depth_anything")


@pytest.fixture(scope="module")
def weights_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    for model in MODELS:
        tiny_networks.save(model, folder)
    return folder


@pytest.fixture(params=MODELS)
def depth(request, weights_dir):
    return Depth(model=request.param, weights_dir=weights_dir, device="cpu", detect_resolution=64)


def photo(height=64, width=64, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_a_depth_map_is_the_originals_bit_for_bit():
    assert np.array_equal(depth_map(original("normal.depth_raw"))[..., 0], original("normal.depth_map"))


def test_near_is_white_and_far_is_black():
    assert depth_map(np.array([[900.0, 1000.0, 1100.0]], dtype=np.float32)).tolist() == [
        [[0] * 3, [127] * 3, [255] * 3]
    ]


def test_depth_that_is_the_same_everywhere_is_black():
    assert not depth_map(np.full((3, 4), 7.5, dtype=np.float32)).any()


def test_nearness_is_what_it_is_at_any_scale_and_offset_of_the_depth():
    raw = np.random.default_rng(0).random((8, 8), dtype=np.float32)
    assert np.allclose(nearness(raw), nearness(300 * raw + 1000), atol=1e-4)


def test_the_hint_has_the_size_of_the_detect_resolution_and_spans_black_to_white(depth):
    hint = depth(photo(50, 101))
    assert hint.shape == (64, 128, 3)
    assert (hint.min(), hint.max()) == (0, 255)


def test_a_batch_gives_what_one_by_one_gives_within_one_level(depth):
    pictures = [photo(seed=1), photo(70, 140, seed=2), photo(seed=3)]
    together = depth.batch(pictures)
    apart = [depth(picture) for picture in pictures]
    assert max(np.abs(a.astype(int) - b).max() for a, b in zip(together, apart, strict=True)) <= 1


@pytest.mark.parametrize("picture", [photo(1, 1), photo(7, 90), np.full((64, 64, 3), 200, np.uint8), photo()[..., 0]])
def test_tiny_long_constant_and_grey_pictures_have_depth(depth, picture):
    assert depth(picture).dtype == np.uint8


def test_pixel_perfect_looks_at_the_pictures_own_resolution(depth):
    assert Depth(model=depth.model, weights_dir=depth.weights_dir, detect_resolution=0)(photo(128, 192)).shape[:2] == (
        128,
        192,
    )


def test_depth_is_computed_in_float32_unless_asked_for_less(depth):
    assert next(depth.network.parameters()).dtype == torch.float32
    coarse = Depth(
        model=depth.model, weights_dir=depth.weights_dir, device="cpu", detect_resolution=64, dtype="bfloat16"
    )
    assert 0 < np.abs(coarse(photo()).astype(int) - depth(photo())).mean() < 8


def test_old_pickled_weights_give_the_same_hint(depth, tmp_path):
    tiny_networks.save(depth.model, tmp_path, safe=False)
    pickled = Depth(model=depth.model, weights_dir=tmp_path, device="cpu", detect_resolution=64)
    assert np.array_equal(pickled(photo()), depth(photo()))


def test_dpt_hybrid_by_its_parts_is_its_own_forward_at_the_size_of_its_training(weights_dir):
    network = DenseNetwork("dpt_hybrid", weights_dir)
    with torch.inference_mode():
        x_bchw = torch.randn(2, 3, 64, 64)
        assert torch.equal(network(x_bchw)[:, 0], network.model(x_bchw).predicted_depth)


PROCESSORS = {
    "dpt_hybrid": transformers.DPTImageProcessorPil(do_resize=False, image_mean=[0.5] * 3, image_std=[0.5] * 3),
    # Depth Anything's steps of 14 and ours of 64 pixels meet at 448
    "depth_anything": transformers.DPTImageProcessorPil(
        do_resize=False, image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225]
    ),
}


@pytest.mark.parametrize(("model", "side"), [("dpt_hybrid", 64), ("depth_anything", 448)])
def test_depth_is_what_the_models_own_image_processor_and_forward_give(weights_dir, model, side):
    network = DenseNetwork(model, weights_dir)
    picture = photo(side, side)
    with torch.inference_mode():
        theirs = network.model(**PROCESSORS[model](picture, return_tensors="pt")).predicted_depth
    assert np.allclose(network.look(picture[None])[..., 0], theirs, rtol=1e-4, atol=1e-5)
