"""The one decoder: what it reads, how it maps it to 8-bit RGB, what it refuses and what it then says."""

import re
import struct
import zlib
from contextlib import suppress
from io import BytesIO

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageCms

from controlnet import images
from controlnet.errors import UserError
from controlnet.images import PictureError, decode
from parity.annotators import original

TOP_LEFT_RED = np.zeros((4, 6, 3), np.uint8)
TOP_LEFT_RED[0, 0] = 255, 0, 0


def as_bytes(image: Image.Image, form: str = "PNG", **options) -> bytes:
    buffer = BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that says its size and ends before its pixels."""
    content = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    header = struct.pack(">I", 13) + content + struct.pack(">I", zlib.crc32(content))
    return b"\x89PNG\r\n\x1a\n" + header + struct.pack(">I", 100) + b"IDAT"


@given(arrays(np.uint8, (5, 7, 3)))
def test_a_png_comes_back_exactly(rgb):
    assert np.array_equal(decode(as_bytes(Image.fromarray(rgb))), rgb)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_a_file_its_bytes_and_its_image_give_the_same(tmp_path, form):
    content = as_bytes(Image.fromarray(TOP_LEFT_RED).resize((60, 40)), form)
    (tmp_path / "picture").write_bytes(content)
    decoded = decode(tmp_path / "picture")
    assert (decoded.dtype, decoded.shape) == (np.uint8, (40, 60, 3))
    assert np.array_equal(decoded, decode(content))
    assert np.array_equal(decoded, decode(Image.open(BytesIO(content))))


@pytest.mark.parametrize(("orientation", "row", "column"), [(1, 0, 0), (3, 3, 5), (6, 0, 3), (8, 5, 0)])
def test_the_cameras_orientation_is_applied(orientation, row, column):
    # EXIF 2.32: 3 is half a turn, 6 a quarter clockwise, 8 a quarter anticlockwise, of a picture 6 wide and 4 high
    exif = Image.Exif()
    exif[images.ORIENTATION] = orientation
    content = as_bytes(Image.fromarray(TOP_LEFT_RED), exif=exif)
    decoded = decode(content)
    assert decoded[row, column].tolist() == [255, 0, 0]
    assert images.header_size(content) == decoded.shape[1::-1]


@pytest.mark.parametrize(
    "image",
    [
        pytest.param(Image.new("RGBA", (4, 4), (255, 0, 0, 0)), id="RGBA"),
        pytest.param(Image.new("LA", (4, 4), (0, 0)), id="LA"),
        pytest.param(Image.new("RGBA", (4, 4), (255, 0, 0, 0)).quantize(), id="palette"),
    ],
)
def test_what_is_transparent_is_white(image):
    assert np.all(decode(as_bytes(image)) == 255)


@pytest.mark.parametrize(("mode", "key"), [("RGB", (9, 9, 9)), ("L", 9)])
def test_a_colour_declared_transparent_is_white(mode, key):
    assert np.all(decode(as_bytes(Image.new(mode, (4, 4), key), transparency=key)) == 255)


def test_half_transparent_red_is_pink():
    assert decode(as_bytes(Image.new("RGBA", (4, 4), (255, 0, 0, 128))))[0, 0].tolist() == [255, 127, 127]


def test_a_palette_gives_its_colours():
    assert decode(as_bytes(Image.new("RGB", (4, 4), (12, 34, 56)).quantize()))[0, 0].tolist() == [12, 34, 56]


@given(st.integers(0, 65535))
def test_sixteen_bits_are_scaled_not_truncated(value):
    content = as_bytes(Image.fromarray(np.full((2, 2), value, np.uint16)))
    assert Image.open(BytesIO(content)).mode.startswith("I")
    assert decode(content)[0, 0].tolist() == [round(value / 257)] * 3


def test_sixteen_bits_in_thirty_two_are_scaled_too():
    assert np.all(decode(Image.new("I", (4, 4), 32768)) == 128)


@pytest.mark.parametrize("mode", ["1", "L"])
def test_grey_and_two_tone_become_rgb(mode):
    assert np.all(decode(as_bytes(Image.new(mode, (4, 4), 255))) == np.full((4, 4, 3), 255))


def test_cmyk_without_ink_is_white_and_with_all_of_it_black():
    assert np.all(decode(as_bytes(Image.new("CMYK", (8, 8)), "JPEG")) > 250)
    assert np.all(decode(as_bytes(Image.new("CMYK", (8, 8), (0, 0, 0, 255)), "JPEG")) < 5)


def test_of_an_animation_the_first_frame_counts():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    for form in ("PNG", "WEBP"):
        content = as_bytes(frames[0], form, save_all=True, append_images=frames[1:], lossless=True)
        assert decode(content)[0, 0].tolist() == [255, 0, 0]


def test_with_alpha_the_colours_stay_as_they_are_under_it():
    image = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert images.decode_with_alpha(as_bytes(image))[0, 0].tolist() == [255, 0, 0, 0]
    assert images.decode_with_alpha(as_bytes(Image.new("L", (4, 4), 7)))[0, 0].tolist() == [7, 7, 7, 255]


def test_arrays_get_three_channels_as_in_the_original():
    assert np.array_equal(images.three_channels(original("hwc3.rgba_in")), original("hwc3.out"))


@given(arrays(np.uint8, (3, 5)))
def test_grey_arrays_have_the_same_value_in_each_channel(grey):
    for array in (grey, grey[..., None]):
        assert np.array_equal(images.three_channels(array), np.dstack([grey] * 3))
        assert np.array_equal(images.four_channels(array), np.dstack([grey] * 3 + [np.full_like(grey, 255)]))


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4), np.float32),
        np.zeros((4, 4, 2), np.uint8),
        np.zeros((1, 4, 4, 3), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros(4, np.uint8),
    ],
    ids=lambda array: f"{array.dtype} {array.shape}",
)
def test_arrays_that_are_no_pictures_are_user_errors_with_their_shape(array):
    for channels in (images.three_channels, images.four_channels):
        with pytest.raises(UserError, match=re.escape(f"{array.dtype} {array.shape}")):
            channels(array)


def test_a_png_is_whole_only_if_its_end_is_there(tmp_path):
    path = tmp_path / "picture.png"
    assert not images.is_whole_png(path)
    images.encode_png(TOP_LEFT_RED, path)
    assert images.is_whole_png(path)
    path.write_bytes(path.read_bytes()[:-1])
    assert not images.is_whole_png(path)


def test_the_size_is_read_without_the_pixels():
    assert images.header_size(png_header(640, 480)) == (640, 480)


@pytest.mark.parametrize(
    ("width", "height", "said"),
    [
        (6000, 4001, "24,000,000"),
        (60_000, 60_000, "pixels"),
        (1, 10, "at least 2"),
        (1700, 100, "16 times"),
        (100, 1700, "16 times"),
    ],
)
def test_sizes_beyond_the_limits_are_refused_from_the_header(width, height, said):
    # the pixels are missing: a decoder that tried would complain of a broken picture instead
    with pytest.raises(PictureError, match=said) as refused:
        decode(png_header(width, height))
    assert "broken picture" not in str(refused.value)


def test_the_largest_size_allowed_passes_the_header():
    assert images.header_size(png_header(6000, 4000)) == (6000, 4000)
    assert images.header_size(png_header(1600, 100)) == (1600, 100)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_a_truncated_file_is_named_with_a_remedy(tmp_path, form, share):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    content = as_bytes(Image.fromarray(noise), form)
    path = tmp_path / f"cut.{form.lower()}"
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(PictureError, match=f"{path}: .*(replace|convert) .*remove it"):
        decode(path)


@given(st.data())
def test_broken_bytes_give_a_picture_or_a_picture_error_and_nothing_else(data):
    content = bytearray(as_bytes(Image.fromarray(TOP_LEFT_RED), data.draw(st.sampled_from(["PNG", "JPEG", "WEBP"]))))
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with suppress(PictureError):
        assert decode(bytes(content)).shape[2] == 3


@pytest.mark.parametrize("form", ["GIF", "BMP", "TIFF"])
def test_other_formats_are_refused_by_name_of_those_expected(form):
    with pytest.raises(PictureError, match="expected PNG, JPEG, WEBP"):
        decode(as_bytes(Image.new("RGB", (4, 4)), form))


def test_a_missing_file_a_folder_and_an_empty_file_are_user_errors(tmp_path):
    (tmp_path / "empty.png").touch()
    for path in (tmp_path / "missing.png", tmp_path, tmp_path / "empty.png"):
        with pytest.raises(UserError, match=str(path)):
            decode(path)


def test_a_profile_in_a_cmyk_picture_is_obeyed_or_the_picture_refused():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    with pytest.raises(PictureError):  # a profile of three channels cannot speak of four inks
        decode(as_bytes(Image.new("CMYK", (8, 8)), "JPEG", icc_profile=profile))


@given(arrays(np.uint8, (3, 5, 3)))
def test_targets_and_hints_span_their_ranges_and_come_back_exactly(rgb):
    target, hint = images.to_target(rgb), images.to_hint(rgb)
    assert (target.dtype, hint.dtype) == (np.float32, np.float32)
    assert np.array_equal(np.rint((target + 1) * 127.5), rgb)
    assert np.array_equal(np.rint(hint * 255), rgb)
    pixels_bchw = torch.from_numpy(target).permute(2, 0, 1)[None]
    assert np.array_equal(images.to_uint8(pixels_bchw)[0], rgb)


def test_black_and_white_are_the_ends_of_the_ranges():
    black_and_white = np.array([[[0] * 3, [255] * 3]], np.uint8)
    assert images.to_target(black_and_white).ravel()[[0, -1]].tolist() == [-1, 1]
    assert images.to_hint(black_and_white).ravel()[[0, -1]].tolist() == [0, 1]


def test_pixels_beyond_the_range_are_clipped():
    pixels_bchw = torch.tensor([-3.0, 0.0, 3.0]).view(1, 3, 1, 1)
    assert images.to_uint8(pixels_bchw).ravel().tolist() == [0, 128, 255]


def test_a_batch_gives_one_image_each():
    pictures = images.to_pil(torch.zeros(3, 3, 8, 16, dtype=torch.bfloat16))
    assert [picture.size for picture in pictures] == [(16, 8)] * 3


@given(st.integers(0, 255), st.integers(2, 40), st.integers(2, 40))
def test_resizing_keeps_a_flat_colour_and_gives_the_size_asked_for(level, width, height):
    resized = images.resize(np.full((16, 16, 3), level, np.uint8), (width, height))
    assert resized.shape == (height, width, 3)
    assert np.all(resized == level)


def test_shrinking_takes_the_mean():
    checkers = np.indices((8, 8)).sum(0) % 2 * 200
    shrunk = images.resize(np.repeat(checkers[..., None], 3, axis=2).astype(np.uint8), (4, 4))
    assert np.all(shrunk == 100)


def test_an_encoded_png_is_decoded_exactly(tmp_path):
    images.encode_png(TOP_LEFT_RED, tmp_path / "picture.png")
    assert np.array_equal(decode(tmp_path / "picture.png"), TOP_LEFT_RED)


def test_a_grid_holds_every_cell_exactly_and_room_for_words():
    cells = [[np.full((64, 64, 3), 10 * row + column, np.uint8) for column in range(3)] for row in range(2)]
    bare = images.grid(cells, gap=2)
    assert bare.shape == (2 + 2 * 66, 2 + 3 * 66, 3)
    for row in range(2):
        for column in range(3):
            assert np.all(bare[2 + 66 * row :, 2 + 66 * column :][:64, :64] == cells[row][column])
    told = images.grid(cells, headings=["hint", "picture", "truth"], captions=["cyan circle", "navy star"], gap=2)
    assert told.shape[0] > bare.shape[0]
    assert told.shape[1] == bare.shape[1]
