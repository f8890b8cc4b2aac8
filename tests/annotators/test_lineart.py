"""Line drawings: the networks' published names and sizes, and both through the public classes."""

from itertools import pairwise

import numpy as np
import pytest
import torch

import formula_networks
from controlnet.annotators.lineart import Lineart, LineartAnime
from controlnet.annotators.lineart_network import AnimeNetwork, LineartNetwork
from controlnet.annotators.weights import WEIGHTS

NAMES = ("lineart", "lineart_coarse", "lineart_anime")


@pytest.fixture(scope="module")
def weights_dir(tmp_path_factory):
    with formula_networks.published(tmp_path_factory.mktemp("weights"), *NAMES) as folder:
        yield folder


@pytest.fixture(scope="module")
def lineart(weights_dir):
    return Lineart(weights_dir=weights_dir, device="cpu", detect_resolution=64)


@pytest.fixture(scope="module")
def anime(weights_dir):
    return LineartAnime(weights_dir=weights_dir, device="cpu", detect_resolution=64)


def photo(height=64, width=64, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def distance(hint, other):
    return np.abs(hint.astype(int) - other).max()


def test_the_photographs_network_has_the_published_names_and_shapes():
    expected = {}
    for name, outputs, inputs, kernel in [
        ("model0.1", 64, 3, 7),
        ("model1.0", 128, 64, 3),
        ("model1.3", 256, 128, 3),
        *((f"model2.{block}.conv_block.{layer}", 256, 256, 3) for block in range(3) for layer in (1, 5)),
        ("model3.0", 256, 128, 3),  # transposed: inputs first
        ("model3.3", 128, 64, 3),
        ("model4.1", 1, 64, 7),
    ]:
        biases = inputs if name.startswith("model3") else outputs
        expected |= {f"{name}.weight": (outputs, inputs, kernel, kernel), f"{name}.bias": (biases,)}
    assert {name: tuple(it.shape) for name, it in LineartNetwork().state_dict().items()} == expected


def test_the_animes_network_has_the_published_names_and_shapes():
    widths = [3, 64, 128, 256, 512, 512, 512, 512, 512]
    expected, prefix = {}, "model.model"
    for depth, (inputs, outputs) in enumerate(pairwise(widths)):
        is_innermost = depth == 7
        down, deeper, up = (0, 1, 3) if depth == 0 else (1, None, 3) if is_innermost else (1, 3, 5)
        back = 1 if depth == 0 else inputs
        expected |= {f"{prefix}.{down}.weight": (outputs, inputs, 4, 4), f"{prefix}.{down}.bias": (outputs,)}
        seen = outputs if is_innermost else 2 * outputs
        expected |= {f"{prefix}.{up}.weight": (seen, back, 4, 4), f"{prefix}.{up}.bias": (back,)}
        prefix += f".{deeper}.model"
    assert {name: tuple(it.shape) for name, it in AnimeNetwork().state_dict().items()} == expected


@pytest.mark.parametrize(("name", "network"), [("lineart", LineartNetwork), ("lineart_anime", AnimeNetwork)])
def test_the_networks_fill_the_published_files(name, network):
    size = sum(4 * parameter.numel() for parameter in network().parameters())
    assert 0 < WEIGHTS[name].size - size < 20_000  # the names, and the zip's own


def test_brightness_and_contrast_change_no_line(lineart):
    """Every channel is normalised after the first convolution, whose padding mirrors."""
    dim = photo() // 4
    assert distance(lineart(dim), lineart(3 * dim + 40)) <= 1


def test_a_picture_without_any_contrast_has_a_drawing_of_numbers(lineart):
    """The norms divide by a deviation of nothing."""
    with torch.inference_mode():
        drawing = lineart.network(torch.full((1, 3, 64, 64), 0.5))
    assert torch.all((drawing >= 0) & (drawing <= 1))


@pytest.mark.parametrize("annotator", ["lineart", "anime"])
def test_strokes_are_white_where_the_networks_drawing_is_dark(request, annotator):
    annotator = request.getfixturevalue(annotator)
    picture = photo(256, 256)
    unit = torch.from_numpy(picture).permute(2, 0, 1)[None] / 255
    with torch.inference_mode():
        [drawing] = annotator.network(unit if isinstance(annotator, Lineart) else 2 * unit - 1)
    drawing = drawing if isinstance(annotator, Lineart) else (drawing + 1) / 2
    hint = type(annotator)(weights_dir=annotator.weights_dir, device="cpu", detect_resolution=256)(picture)
    assert distance(hint[..., 0], 255 - 255 * drawing.numpy()) < 1.01
    assert hint.std() > 1


def test_coarse_lines_are_by_the_other_weights(weights_dir, lineart):
    coarse = Lineart(weights_dir=weights_dir, device="cpu", detect_resolution=64, coarse=True)
    by_hand = LineartNetwork()
    by_hand.load_state_dict(formula_networks.lineart_coarse())
    assert torch.equal(coarse.network.model4[1].weight, by_hand.model4[1].weight)
    assert distance(coarse(photo()), lineart(photo())) > 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_batch_gives_what_one_by_one_gives_within_one_level(weights_dir, dtype):
    lineart = Lineart(weights_dir=weights_dir, device="cpu", detect_resolution=64, dtype=dtype)
    pictures = [photo(seed=1), photo(70, 140, seed=2), photo(seed=3)]
    together = lineart.batch(pictures)
    assert max(distance(hint, lineart(picture)) for hint, picture in zip(together, pictures, strict=True)) <= 1


def test_a_batch_of_anime_gives_what_one_by_one_gives_within_one_level(anime):
    pictures = [photo(seed=1), photo(seed=3)]
    together = anime.batch(pictures)
    assert max(distance(hint, anime(picture)) for hint, picture in zip(together, pictures, strict=True)) <= 1


@pytest.mark.parametrize(("size", "expected"), [((1, 1), (64, 64)), ((63, 129), (64, 128))])
def test_every_size_of_picture_has_a_hint_at_the_detect_resolution(lineart, anime, size, expected):
    assert lineart(photo(*size)).shape == (*expected, 3)
    assert anime(photo(*size)).shape == (*expected, 3)


def test_names_with_and_without_the_prefix_of_parallel_training_are_read(tmp_path, monkeypatch, anime):
    plain = {name.removeprefix("module."): tensor for name, tensor in formula_networks.lineart_anime().items()}
    monkeypatch.setitem(formula_networks.NETWORKS, "lineart_anime", lambda: plain)
    with formula_networks.published(tmp_path, "lineart_anime") as folder:
        again = LineartAnime(weights_dir=folder, device="cpu", detect_resolution=64)
        assert np.array_equal(again(photo()), anime(photo()))
