"""Segmentation: the palette, foreign maps, and the network end to end on tiny random weights in its true format."""

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import tiny_networks
from controlnet.annotators.ade20k import CLASSES, PALETTE
from controlnet.annotators.seg import UNIFORMER, Segmentation, snap, to_colours
from controlnet.errors import UserError

ROAD, SKYSCRAPER = (next(i for i, each in enumerate(CLASSES) if each.name == name) for name in ("road", "skyscraper"))


@pytest.fixture(scope="module")
def seg(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    tiny_networks.save("upernet", folder)
    return Segmentation(weights_dir=folder, device="cpu", detect_resolution=64)


def photo(height=64, width=64, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("name", "colour"),
    [
        ("wall", (120, 120, 120)),
        ("building", (180, 120, 120)),
        ("sky", (6, 230, 230)),
        ("floor", (80, 50, 50)),
        ("tree", (4, 200, 3)),
        ("person", (150, 5, 61)),
        ("car", (0, 102, 200)),
        ("water", (61, 230, 250)),
        ("flag", (92, 0, 255)),
    ],
)
def test_the_palette_is_ade20ks(name, colour):
    assert dict(CLASSES)[name] == colour


def test_150_classes_have_149_colours_since_road_and_skyscraper_share_one():
    assert len(CLASSES) == len(dict(CLASSES)) == 150
    assert len(np.unique(PALETTE, axis=0)) == 149
    assert CLASSES[ROAD].colour == CLASSES[SKYSCRAPER].colour == (140, 140, 140)


@given(arrays(np.uint8, (5, 7), elements=st.integers(0, 149).filter(lambda index: index != SKYSCRAPER)))
def test_indices_come_back_from_their_colours(indices):
    back, off = snap(to_colours(indices))
    assert np.array_equal(back, indices)
    assert off == 0


def test_skyscrapers_become_road_in_colours_and_stay_skyscrapers_as_indices():
    back, off = snap(to_colours(np.full((2, 2), SKYSCRAPER)))
    assert (back == ROAD).all()
    assert off == 0


@given(arrays(np.uint8, (4, 4, 3)))
def test_a_foreign_colour_gets_the_nearest_of_the_palette_and_is_counted(picture):
    indices, off = snap(picture)
    distances = ((picture[..., None, :].astype(int) - PALETTE.astype(int)) ** 2).sum(-1)
    assert np.array_equal(np.take_along_axis(distances, indices[..., None].astype(int), -1)[..., 0], distances.min(-1))
    assert off == (distances.min(-1) > 0).sum()


def test_more_colours_than_are_compared_at_once_are_snapped_too():
    every_other = np.arange(0, 1 << 24, 200, dtype=np.uint32)
    picture = np.stack([every_other >> 16, every_other >> 8 & 255, every_other & 255], -1).astype(np.uint8)[None]
    indices, off = snap(picture)
    assert indices.shape == (1, len(every_other))
    assert off > 65536
    assert np.array_equal(snap(picture[:, -9:])[0], indices[:, -9:])


def test_an_index_beyond_the_classes_is_refused_by_value():
    with pytest.raises(UserError, match="from 1 to 150; expected 0 to 149"):
        to_colours(np.array([[1, 150]]))


def test_the_hint_is_the_palette_picture_of_the_indices(seg):
    [(hint, indices)] = seg.annotate_detailed(photo(64, 128)[None])
    assert indices.shape == (64, 128)
    assert len(np.unique(indices)) > 1
    assert np.array_equal(hint, PALETTE[indices])
    assert np.array_equal(hint, seg(photo(64, 128)))


def test_classes_are_what_the_models_own_image_processor_and_forward_give(seg):
    processor = transformers.SegformerImageProcessorPil(do_resize=False)
    picture = photo()
    with torch.inference_mode():
        logits = seg.network.model(**processor(picture, return_tensors="pt")).logits
    assert (seg.classify(picture[None])[0] == logits[0].argmax(0).numpy()).mean() > 0.999


def test_a_batch_gives_what_one_by_one_gives(seg):
    pictures = [photo(seed=1), photo(70, 140, seed=2), photo(seed=3)]
    same = [(a == b).all(-1).mean() for a, b in zip(seg.batch(pictures), map(seg, pictures), strict=True)]
    assert min(same) > 0.999  # ties between logits may fall either way


@pytest.mark.parametrize("picture", [photo(1, 1), photo(7, 90), np.full((64, 64, 3), 200, np.uint8), photo()[..., 0]])
def test_tiny_long_constant_and_grey_pictures_have_classes(seg, picture):
    assert snap(seg(picture))[1] == 0


def test_the_originals_weights_are_refused_by_name_with_what_to_use(tmp_path):
    (tmp_path / UNIFORMER).write_bytes(b"")
    with pytest.raises(UserError, match=r"upernet_global_small\.pth.*UniFormer(.|\n)*openmmlab/upernet-convnext-small"):
        Segmentation(weights_dir=tmp_path)(photo())


def test_the_originals_weights_are_no_hindrance_beside_those_that_can_be_used(seg):
    (seg.weights_dir / UNIFORMER).write_bytes(b"")
    assert Segmentation(weights_dir=seg.weights_dir, detect_resolution=64)(photo()).shape == (64, 64, 3)
