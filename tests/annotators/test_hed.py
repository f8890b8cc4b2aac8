"""Soft edges: the original's map, through the public class and a file as it is published."""

import numpy as np
import pytest
import torch

import formula_networks
from controlnet.annotators.hed import FakeScribble, Hed, in_steps
from controlnet.annotators.hed_network import HedNetwork
from controlnet.annotators.scribble import scribble_of_soft_edges
from parity.annotators import original


@pytest.fixture(scope="module")
def weights_dir(tmp_path_factory):
    with formula_networks.published(tmp_path_factory.mktemp("weights"), "hed") as folder:
        yield folder


@pytest.fixture(scope="module")
def hed(weights_dir):
    return Hed(weights_dir=weights_dir, device="cpu", detect_resolution=64)


def photo(height=64, width=64, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def distance(hint, other):
    return np.abs(hint.astype(int) - other).max()


def test_the_network_has_every_tensor_of_the_public_file_and_no_other():
    names = {name: tuple(tensor.shape) for name, tensor in HedNetwork().state_dict().items()}
    assert names == formula_networks.shapes("hed")


def test_the_map_is_the_originals_within_one_level(weights_dir):
    hint = Hed(weights_dir=weights_dir, device="cpu", detect_resolution=256)(original("resize.256"))
    assert distance(hint, original("hed.map")[..., None]) <= 1


def test_the_fake_scribble_is_that_of_the_soft_edges(weights_dir, hed):
    scribble = FakeScribble(weights_dir=weights_dir, device="cpu", detect_resolution=64)(photo())
    assert np.array_equal(scribble[..., 0], scribble_of_soft_edges(hed(photo())[..., 0]))


def test_safe_edges_are_the_probability_in_three_steps():
    probabilities = np.array([0, 0.333, 0.334, 0.666, 0.667, 1])
    assert in_steps(probabilities).tolist() == [0, 0, 0.5, 0.5, 1, 1]


def test_safe_edges_have_no_greys_between(weights_dir):
    safe = Hed(weights_dir=weights_dir, device="cpu", detect_resolution=256, safe=True)(original("resize.256"))
    assert {0, 127} <= set(np.unique(safe)) <= {0, 127, 255}


def test_the_average_of_blind_side_outputs_is_a_half_everywhere():
    network = HedNetwork().eval()
    for name, parameter in network.named_parameters():
        if "projection" in name:
            torch.nn.init.zeros_(parameter)
    assert torch.equal(network(torch.rand(1, 3, 17, 40) * 255), torch.full((1, 17, 40), 0.5))


def test_the_learned_mean_colour_counts_as_black():
    network = HedNetwork().eval()
    torch.nn.init.constant_(network.norm, 100)
    shifted = HedNetwork().eval()
    shifted.load_state_dict(network.state_dict() | {"norm": torch.zeros(1, 3, 1, 1)})
    rgb = torch.rand(1, 3, 32, 32) * 155
    assert torch.allclose(network(rgb + 100), shifted(rgb), atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_batch_gives_what_one_by_one_gives_within_one_level(weights_dir, dtype):
    hed = Hed(weights_dir=weights_dir, device="cpu", detect_resolution=64, dtype=dtype)
    pictures = [photo(seed=1), photo(70, 140, seed=2), photo(seed=3)]
    together = hed.batch(pictures)
    assert max(distance(hint, hed(picture)) for hint, picture in zip(together, pictures, strict=True)) <= 1


def test_bfloat16_changes_the_map_by_a_few_levels_only(weights_dir, hed):
    coarse = Hed(weights_dir=weights_dir, device="cpu", detect_resolution=64, dtype="bfloat16")
    assert 0 < np.abs(coarse(photo()).astype(int) - hed(photo())).mean() < 4


@pytest.mark.parametrize(("size", "expected"), [((1, 1), (64, 64)), ((7000, 20), (1024, 64)), ((63, 129), (64, 128))])
def test_every_size_of_picture_has_a_hint_at_the_detect_resolution(hed, size, expected):
    assert hed(photo(*size)).shape == (*expected, 3)


def test_a_grey_picture_and_an_opaque_one_have_the_hint_of_the_same_colours(hed):
    grey = photo()[..., 0]
    colours = np.stack([grey] * 3, axis=-1)
    opaque = np.concatenate([colours, np.full((64, 64, 1), 255, np.uint8)], axis=-1)
    assert np.array_equal(hed(grey), hed(colours))
    assert np.array_equal(hed(opaque), hed(colours))


def test_a_file_in_half_precision_serves_as_well(tmp_path, hed):
    from controlnet.annotators.tensors import run

    halved = {name: tensor.half() for name, tensor in formula_networks.hed().items()}
    network = HedNetwork()
    network.load_state_dict(torch.load(formula_networks.save("hed", tmp_path, halved)))
    assert np.abs(run(network, photo()[None]) - hed.probabilities(photo()[None])).max() < 0.02
