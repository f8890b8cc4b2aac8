import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from controlnet.data.transform import Transform, bucket, buckets
from controlnet.errors import UserError

SIZES = st.tuples(st.integers(20, 600), st.integers(20, 600))


def picture(width: int, height: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize("size", [(300, 200), (200, 300), (100, 90), (128, 128)])
def test_the_default_is_a_bilinear_resize_of_the_shorter_side_and_a_crop_of_the_middle(size: tuple[int, int]) -> None:
    rgb = picture(*size)
    scaled = [int(128 * side / min(size)) for side in size]
    resized = np.asarray(Image.fromarray(rgb).resize(tuple(scaled), Image.Resampling.BILINEAR))
    left, top = (round((side - 128) / 2) for side in scaled)
    assert np.array_equal(Transform(128).view(size).of(rgb), resized[top : top + 128, left : left + 128])


def test_without_a_resolution_a_picture_is_seen_as_it_is() -> None:
    rgb = picture(70, 50)
    view = Transform().view((70, 50))
    assert view.is_whole
    assert np.array_equal(view.of(rgb), rgb)


@given(SIZES, st.integers(0, 2**31), st.integers(0, 9), st.booleans())
def test_every_view_has_the_size_asked_for_and_lies_inside(
    size: tuple[int, int], seed: int, sample: int, in_buckets: bool
) -> None:
    view = Transform(128, True, True, in_buckets).view(size, seed, 0, sample)
    assert view.size == (bucket(size, 128) if in_buckets else (128, 128))
    for start, side, whole in zip((view.left, view.top), view.size, view.resized, strict=True):
        assert 0 <= start <= whole - side
    shortest = min(whole / side for whole, side in zip(view.resized, view.size, strict=True))
    assert 1 <= shortest < 1.02, "no larger than it must be"


def test_a_view_depends_on_its_key_alone_and_differs_from_key_to_key() -> None:
    transform = Transform(64, random_crop=True, random_flip=True)
    views = {(epoch, sample): transform.view((200, 100), 3, epoch, sample) for epoch in range(9) for sample in range(9)}
    assert transform.view((200, 100), 3, 4, 5) == views[4, 5]
    assert len(set(views.values())) > 60
    mirrored = sum(view.is_mirrored for view in views.values())
    assert 25 < mirrored < 56
    assert {view.top for view in views.values()} == {0}


def test_a_crop_is_the_same_with_and_without_flips() -> None:
    cropped = Transform(64, random_crop=True).view((200, 100), 1, 2)
    assert Transform(64, random_crop=True, random_flip=True).view((200, 100), 1, 2).left == cropped.left


def test_a_mirrored_view_is_the_mirror_image_of_the_part_on_the_other_side() -> None:
    transform, rgb = Transform(64, random_flip=True), picture(100, 64)
    keys = {transform.view((100, 64), key).is_mirrored: key for key in range(20)}
    plain, mirrored = (transform.view((100, 64), keys[flag]).of(rgb) for flag in (False, True))
    assert np.array_equal(mirrored, plain[:, ::-1])


@pytest.mark.parametrize("resolution", [512, 768])
def test_buckets_are_multiples_of_64_of_at_most_the_area_and_none_can_grow(resolution: int) -> None:
    every = buckets(resolution)
    assert (resolution, resolution) in every
    for width, height in every:
        assert width % 64 == height % 64 == 0
        assert width * height <= resolution**2
        grown = width * (height + 64)
        assert grown > resolution**2 or height + 64 > 2 * resolution
        assert (height, width) in every


@given(SIZES)
def test_a_bucket_is_that_of_the_nearest_aspect(size: tuple[int, int]) -> None:
    width, height = bucket(size, 512)
    assert (width > height) == (size[0] > size[1]) or abs(size[0] / size[1] - 1) < 0.4
    assert bucket(size[::-1], 512) == (height, width) or width == height


def test_alpha_is_transformed_with_its_colours() -> None:
    rgba = np.concatenate([picture(128, 128), np.zeros((128, 128, 1), np.uint8)], axis=2)
    assert Transform(64).view((128, 128)).of(rgba).shape == (64, 64, 4)


@pytest.mark.parametrize(
    "options", [{"resolution": 100}, {"resolution": 0}, {"random_crop": True}, {"aspect_buckets": True}]
)
def test_what_cannot_be_is_refused(options: dict[str, int]) -> None:
    with pytest.raises(UserError, match="--resolution"):
        Transform(**options)  # type: ignore[arg-type]
