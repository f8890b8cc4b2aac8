"""Hints made of the picture's own colours: shuffled, blurred, made grey, marked, or left as they are."""

import numpy as np
import pytest
from PIL import Image

from controlnet.annotators.inpaint import Inpaint, to_inpaint_hint
from controlnet.annotators.shuffle import Shuffle
from controlnet.annotators.tile import Grey, Nothing, Tile
from parity.annotators import original

PICTURE = original("image")


def test_shuffling_depends_on_the_picture_and_the_seed_alone():
    assert np.array_equal(Shuffle()(PICTURE), Shuffle()(PICTURE.copy()))
    assert not np.array_equal(Shuffle()(PICTURE), Shuffle(seed=1)(PICTURE))
    first, second = Shuffle().batch([PICTURE[::-1], PICTURE])
    assert np.array_equal(second, Shuffle()(PICTURE))
    assert not np.array_equal(first[::-1], second)


def test_shuffling_moves_colours_and_makes_few_new_ones():
    halves = np.zeros((512, 512, 3), np.uint8)
    halves[:, 256:] = 200
    shuffled = Shuffle()(halves)
    assert not np.array_equal(shuffled, halves)
    assert np.isin(shuffled, (0, 200)).mean() > 0.95
    assert 0.2 < (shuffled > 100).mean() < 0.8


def test_a_smaller_scale_tears_the_picture_into_smaller_pieces():
    ramp = np.repeat(np.arange(512, dtype=np.float32)[None] / 2, 512, 0).astype(np.uint8)
    steps = [np.abs(np.diff(Shuffle(scale=scale)(ramp)[..., 0].astype(int))).mean() for scale in (256, 32)]
    assert steps[1] > 2 * steps[0]


def test_a_tile_keeps_the_picture_or_its_large_forms():
    assert np.array_equal(Tile()(PICTURE), PICTURE)
    blurred = Tile(down=8)(PICTURE)
    assert blurred.shape == PICTURE.shape
    assert abs(blurred.mean() - PICTURE.mean()) < 2
    assert np.abs(np.diff(blurred.astype(int))).mean() < np.abs(np.diff(PICTURE.astype(int))).mean()


@pytest.mark.parametrize("by", ["luminance", "intensity"])
def test_grey_has_no_colour_and_keeps_black_and_white(by):
    hint = Grey(by=by)(PICTURE)
    assert np.all(hint == hint[..., :1])
    ends = Grey(by=by, gamma=0.5)(np.array([[[0] * 3, [255] * 3]], np.uint8))
    assert ends[0, :, 0].tolist() == [0, 255]


def test_the_intensity_of_a_pure_colour_is_full_and_its_luminance_is_not():
    blue = np.full((4, 4, 3), (0, 0, 255), np.uint8)
    assert Grey(by="intensity")(blue).min() == 255
    assert Grey(by="luminance")(blue).max() < 100


def test_nothing_leaves_the_picture_as_it_is():
    assert np.array_equal(Nothing()(PICTURE[:33, :77]), PICTURE[:33, :77])


def test_what_is_transparent_is_marked_to_be_painted(tmp_path):
    rgba = np.dstack([PICTURE, np.full((512, 512), 255, np.uint8)])
    rgba[100:200, 50:80, 3] = 0
    Image.fromarray(rgba).save(tmp_path / "holes.png")
    for source in (rgba, tmp_path / "holes.png"):
        hint = to_inpaint_hint(Inpaint()(source))
        assert np.all(hint[100:200, 50:80] == -1)
        assert (hint == -1).sum() == 100 * 30 * 3
        assert np.array_equal(np.rint(hint[:100] * 255), PICTURE[:100])


@pytest.mark.parametrize("share", [0, 0.25, 0.5, 1])
def test_an_opaque_picture_is_hidden_in_a_box_of_the_share_asked_for(share):
    hint = Inpaint(share=share)(PICTURE)
    is_hidden = hint[..., 3] == 0
    assert is_hidden.mean() == pytest.approx(share, abs=0.01)
    assert np.array_equal(hint[..., :3], PICTURE)
    rows, columns = np.nonzero(is_hidden)
    if share:
        assert len(rows) == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)


def test_the_box_depends_on_the_picture_and_the_seed_alone():
    assert np.array_equal(Inpaint()(PICTURE), Inpaint()(PICTURE))
    assert not np.array_equal(Inpaint()(PICTURE), Inpaint(seed=1)(PICTURE))
