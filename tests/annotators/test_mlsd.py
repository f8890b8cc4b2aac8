"""Straight lines: the original's network, its decoding, and both through the public class."""

import numpy as np
import pytest
import torch

import formula_networks
from controlnet.annotators.mlsd import Mlsd, decode_lines, draw_lines
from controlnet.annotators.mlsd_network import MlsdNetwork
from controlnet.errors import UserError
from parity.annotators import original

COUNTER = "num_batches_tracked"


@pytest.fixture(scope="module")
def weights_dir(tmp_path_factory):
    with formula_networks.published(tmp_path_factory.mktemp("weights"), "mlsd") as folder:
        yield folder


@pytest.fixture(scope="module")
def mlsd(weights_dir):
    return Mlsd(weights_dir=weights_dir, device="cpu", detect_resolution=256, distance_threshold=0.01)


@pytest.fixture(scope="module")
def picture():
    """What the reference's network saw."""
    return np.rint((original("mlsd.input")[0, :3].transpose(1, 2, 0) + 1) * 127.5).astype(np.uint8)


def photo(height=64, width=64, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def maps_with(*lines, size=64):
    """The maps of a network that is sure of lines x, y, x, y, in pixels of the maps."""
    maps = np.full((9, size, size), -20, dtype=np.float32)
    for line in lines:
        x, y = (int((line[axis] + line[axis + 2]) / 2) for axis in (0, 1))
        maps[:, y, x] = 20
        maps[1:5, y, x] = np.subtract(line, (x, y, x, y))
    return maps


def test_the_network_has_every_tensor_of_the_public_file_and_no_other():
    names = {name: tuple(it.shape) for name, it in MlsdNetwork().state_dict().items() if COUNTER not in name}
    assert names == formula_networks.shapes("mlsd_large")


def test_the_networks_maps_are_the_originals(mlsd):
    mine = mlsd.network(torch.from_numpy(original("mlsd.input"))).numpy()
    theirs = original("mlsd.output")
    assert np.linalg.norm(mine - theirs) < 1e-5 * np.linalg.norm(theirs)


@pytest.mark.parametrize(("score", "distance"), [(0.1, 0.1), (0.5, 10.0)])
def test_the_lines_of_a_map_are_the_originals(score, distance):
    lines = decode_lines(original("mlsd.decode.tpmap")[0], score, distance)
    assert np.allclose(lines, original(f"mlsd.decode.lines.{score}.{distance}"), rtol=0, atol=1e-4)


def test_a_picture_has_the_lines_of_the_originals_maps(mlsd, picture):
    [lines] = mlsd.lines(picture[None])
    expected = decode_lines(original("mlsd.output")[0], 0.1, 0.01)
    assert len(lines) > 0
    assert np.allclose(lines, expected, atol=1e-2)


def test_the_hint_is_the_drawing_of_the_lines(mlsd, picture):
    [lines] = mlsd.lines(picture[None])
    assert np.array_equal(mlsd(picture), draw_lines(lines, (256, 256)))


def test_lines_are_found_where_they_are_at_twice_the_maps_size():
    planted = [(10, 10, 30, 10), (40, 20, 40, 60)]
    found = decode_lines(maps_with(*planted), 0.1, 0.1)
    assert sorted(found.tolist()) == sorted([2 * number for number in line] for line in planted)


def test_lines_below_either_threshold_are_left_out():
    maps = maps_with((10, 10, 30, 10))
    assert len(decode_lines(maps, 0.99, 19.9)) == 1
    assert len(decode_lines(maps, 0.99, 20.1)) == 0
    assert len(decode_lines(maps, 1, 19.9)) == 0


def test_only_the_highest_of_neighbouring_centres_is_a_line():
    maps = maps_with((10, 10, 30, 10))
    maps[0, 10, 21] = 1
    assert len(decode_lines(maps, 0.1, 0.1)) == 1


def test_no_more_than_the_two_hundred_surest_lines_are_kept():
    maps = np.full((9, 64, 64), -20, dtype=np.float32)
    maps[0, ::2, ::2] = np.arange(1024).reshape(32, 32) / 100
    maps[1:5] = np.array([-5, 0, 5, 0])[:, None, None]
    scores = maps[0, ::2, ::2].ravel()
    lines = decode_lines(maps, 0.1, 0.1)
    assert len(lines) == 200
    assert scores[(lines[:, 1] / 4 * 32 + (lines[:, 0] + 10) / 4).astype(int)].min() == pytest.approx(8.24)


def test_lines_that_leave_the_picture_are_cut_off():
    drawn = draw_lines(np.array([[-50, 5, 500, 5]], dtype=np.float32), (10, 20))
    assert drawn.shape == (10, 20, 3)
    assert np.flatnonzero(drawn.any(axis=(1, 2))).tolist() == [5]
    assert drawn[5].all()


def test_a_picture_without_lines_is_black(weights_dir):
    blind = Mlsd(weights_dir=weights_dir, device="cpu", detect_resolution=64, score_threshold=1.0)
    assert not blind(photo()).any()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_batch_gives_what_one_by_one_gives(weights_dir, dtype):
    mlsd = Mlsd(weights_dir=weights_dir, device="cpu", detect_resolution=64, distance_threshold=0.01, dtype=dtype)
    pictures = [photo(seed=1), photo(70, 140, seed=2), photo(seed=3)]
    for hint, picture in zip(mlsd.batch(pictures), pictures, strict=True):
        assert np.array_equal(hint, mlsd(picture))


@pytest.mark.parametrize("size", [(1, 1), (700, 20), (63, 129)])
def test_every_size_of_picture_has_a_hint(mlsd, size):
    hint = Mlsd(weights_dir=mlsd.weights_dir, device="cpu", detect_resolution=64)(photo(*size))
    assert min(hint.shape[:2]) == 64
    assert set(np.unique(hint)) <= {0, 255}


def test_a_file_with_the_counters_of_training_serves_as_well(tmp_path, monkeypatch, mlsd, picture):
    counters = {name: tensor for name, tensor in MlsdNetwork().state_dict().items() if COUNTER in name}
    assert counters
    monkeypatch.setattr(
        formula_networks,
        "NETWORKS",
        {"mlsd": lambda: formula_networks.mlsd() | {name: 7 + it for name, it in counters.items()}},
    )
    with formula_networks.published(tmp_path, "mlsd") as folder:
        counted = Mlsd(weights_dir=folder, device="cpu", detect_resolution=256, distance_threshold=0.01)
        assert np.array_equal(counted(picture), mlsd(picture))


def test_a_threshold_out_of_range_is_refused_with_the_range():
    with pytest.raises(UserError, match="score_threshold is 3; expected a number from 0.01 to 2"):
        Mlsd(score_threshold=3)
