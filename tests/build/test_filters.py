"""Rules over pictures: what they leave out says why; duplicates are judged by theory on planted hashes."""

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlnet.build.annotate import Annotate
from controlnet.build.duplicates import Duplicates
from controlnet.build.filters import Resize, Resolution, Sharpness, sharpness
from controlnet.build.pictures import inspected, perceptual_hash
from controlnet.build.rows import Row
from controlnet.build.stage import Context, guarded
from controlnet.errors import UserError
from controlnet.images import decode, encoded

NOISE = np.random.default_rng(0).integers(0, 256, (80, 120, 3), np.uint8)
ROW = inspected(Row("noise"), encoded(NOISE, "png"))


def through(stage, *rows):
    return list(guarded(stage.setup(Context(device="cpu")))(rows))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"min_side": 81}, "side under 81"),
        ({"min_side": 80, "max_pixels": 9599}, "more than 9599 pixels"),
        ({"min_side": 80, "max_aspect": 1.4}, "aspect over 1.4"),
        ({"min_side": 80, "max_aspect": 1.5, "max_pixels": 9600}, ""),
    ],
)
def test_bounds_of_the_resolution(options, reason):
    [row] = through(Resolution(**options), ROW)
    assert (row.status == "dropped", row.reason) == (bool(reason), reason)


def test_a_blurred_picture_is_told_from_a_sharp_one():
    blurred = cv2.GaussianBlur(NOISE, (0, 0), 6)
    assert sharpness(blurred) < 30 < sharpness(NOISE)
    [sharp, soft] = through(Sharpness(), ROW, inspected(Row("soft"), encoded(blurred, "png")))
    assert (sharp.status, soft.status, soft.reason) == ("ok", "dropped", "blurred")


def test_resizing_crops_the_middle_and_says_what_was():
    [row] = through(Resize(size=64, format="png"), ROW)
    assert decode(row.files["image"]).shape == (64, 64, 3)
    assert (row.values["width"], row.values["original_width"], row.values["original_height"]) == (64, 120, 80)
    [whole] = through(Resize(size=64, mode="shorter"), ROW)
    assert decode(whole.files["image"]).shape == (64, 96, 3)
    assert whole.values["format"] == "jpg"
    [small] = through(Resize(size=128), ROW)
    assert (small.status, small.reason) == ("dropped", "side under 128")


def test_hints_are_lossless_of_the_pictures_size_and_say_what_they_are():
    from controlnet.annotators.canny import Canny

    [row] = through(Annotate(condition="canny", options={"low": 50, "detect_resolution": 128}), ROW)
    assert row.values["condition"] == "canny"
    assert '"low": 50' in row.values["annotator"]
    assert decode(row.files["hint.png"]).shape == NOISE.shape
    assert set(np.unique(Canny(low=50, detect_resolution=128)(NOISE))) <= {0, 255}


def test_an_annotator_that_is_not_there_or_lacks_the_option_is_refused_before_anything_runs():
    with pytest.raises(UserError, match="canny has no option lo; expected:"):
        Annotate(condition="canny", options={"lo": 50})
    with pytest.raises(UserError, match="low is 999"):
        Annotate(condition="canny", options={"low": 999})


def test_one_broken_row_fails_alone():
    broken = ROW.having({"image": b"\x89PNG\r\n\x1a\n" + bytes(40)})
    first, second, third = through(Annotate(condition="canny"), ROW, broken, ROW)
    assert (first.status, second.status, third.status) == ("ok", "failed", "ok")
    assert "no picture that can be read" in second.detail


def hashed(number: int, bits: int) -> Row:
    return Row(str(number), {"phash": f"{bits:016x}", "sha256": f"{bits:x}"})


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=12), st.integers(0, 15), st.randoms())
def test_near_duplicates_are_found_at_every_distance(numbers, distance, random):
    """Beside the plain rule: a row goes if a row before it, that stays, differs in at most so many bits."""
    planted = [
        number ^ sum(1 << place for place in random.sample(range(64), random.randint(0, 16))) for number in numbers
    ]
    rows = [hashed(number, bits) for number, bits in enumerate([*numbers, *planted])]
    kept, expected = [], set()
    for row in rows:
        bits = int(row.values["phash"], 16)
        if any((bits ^ other).bit_count() <= distance for other in kept):
            expected.add(row.id)
        else:
            kept.append(bits)
    assert set(Duplicates(distance=distance).decide(rows)) == expected


def test_equal_files_are_duplicates_of_the_first():
    rows = [hashed(0, 7), hashed(1, 8), hashed(2, 7), hashed(3, 7), Row("none")]
    decided = Duplicates(by="sha256").decide(rows)
    assert decided == {"2": ("duplicate by sha256", "of 0"), "3": ("duplicate by sha256", "of 0")}


def test_a_picture_looks_like_itself_after_scaling_and_compression_and_not_like_others():
    def apart(first, second):
        return (int(first, 16) ^ int(second, 16)).bit_count()

    originals = [cv2.GaussianBlur(np.roll(NOISE, 9 * k, 1), (0, 0), 4 + k) for k in range(4)]
    hashes = [perceptual_hash(picture) for picture in originals]
    for picture, own in zip(originals, hashes, strict=True):
        smaller = cv2.resize(picture, (90, 60), interpolation=cv2.INTER_AREA)
        assert apart(own, perceptual_hash(decode(encoded(smaller, "jpg")))) <= 4
    assert min(apart(a, b) for a in hashes for b in hashes if a != b) > 15
