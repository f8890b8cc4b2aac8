"""A unit: what its network sees, how strongly it speaks at which step, and which layers of it."""

import json
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import tiny
from controlnet.annotators.hint_file import description, encode
from controlnet.annotators.inpaint import Inpaint, to_inpaint_hint
from controlnet.control import ControlNet
from controlnet.errors import UserError
from controlnet.generation.unit import Unit, soft_weights

RGB = np.random.default_rng(0).integers(0, 256, (64, 72, 3), np.uint8)
PIXELS = torch.from_numpy(RGB.astype(np.float32) / 255).permute(2, 0, 1)[None]
BLACK = np.zeros((64, 72, 3), np.uint8)


@pytest.fixture(scope="module")
def control() -> ControlNet:
    return ControlNet.from_base(tiny.unet("sd1"))


@pytest.fixture(scope="module")
def small() -> ControlNet:
    return ControlNet.from_base(tiny.unet("sdxl"))


def test_a_hint_of_the_pictures_size_is_seen_as_it_is(control: ControlNet):
    assert torch.equal(Unit(control, RGB).pixels((64, 72)), PIXELS)


def test_several_hints_are_each_brought_to_the_size(control: ControlNet):
    pixels = Unit(control, [RGB, Image.fromarray(RGB[:32, :36])]).pixels((64, 72))
    assert torch.equal(pixels[:1], PIXELS)
    assert pixels.shape == (2, 3, 64, 72)


def test_a_hint_of_another_number_of_channels_is_refused(control: ControlNet):
    with pytest.raises(UserError, match=r"expected \(3 channels, H, W\)"):
        _ = Unit(control, PIXELS[0, :2]).given


WITH_HOLE = np.dstack([RGB, np.full((64, 72), 255, np.uint8)])
WITH_HOLE[16:32, 8:40, 3] = 0


def test_the_network_sees_minus_one_where_a_hint_for_inpainting_is_transparent(control: ControlNet, tmp_path):
    hint, picture = tmp_path / "hint.png", tmp_path / "picture.png"
    hint.write_bytes(encode(WITH_HOLE, json.dumps(description(Inpaint()))))
    Image.fromarray(WITH_HOLE).save(picture)
    expected = torch.from_numpy(to_inpaint_hint(WITH_HOLE)).permute(2, 0, 1)[None]
    for unit in (
        Unit(control, WITH_HOLE),
        Unit(control, hint),
        Unit(control, image=picture, annotator=Inpaint()),
    ):
        assert torch.equal(unit.pixels((64, 72)), expected)
        smaller = unit.pixels((32, 36))
        assert (smaller[..., 9:15, 5:19] == -1).all()
        assert smaller[..., :6, :].min() >= 0


def test_transparency_that_says_nothing_of_inpainting_lies_on_white(control: ControlNet, tmp_path):
    Image.fromarray(WITH_HOLE).save(tmp_path / "drawing.png")
    assert (Unit(control, tmp_path / "drawing.png").pixels((64, 72))[..., 16:32, 8:40] == 1).all()


@pytest.mark.parametrize(
    "what", [{}, {"hint": RGB, "image": RGB, "annotator": abs}, {"image": RGB}, {"hint": RGB, "annotator": abs}]
)
def test_a_unit_has_a_hint_or_an_image_and_an_annotator(control: ControlNet, what):
    with pytest.raises(UserError, match="expected a hint, or an image and the annotator"):
        _ = Unit(control, **what).given


def inverted(picture: np.ndarray) -> np.ndarray:
    return 255 - picture


def test_the_annotator_makes_the_hint(control: ControlNet):
    unit = Unit(control, image=RGB, annotator=inverted)
    torch.testing.assert_close(unit.pixels((64, 72)), 1 - PIXELS, rtol=0, atol=1e-6)


def test_the_annotators_hint_covers_the_picture_at_the_images_aspect(control: ControlNet):
    """It may be stretched, as the original's are to multiples of 64; its frame is the image's."""
    image = np.zeros((100, 200, 3), np.uint8)
    image[:, 50:150] = 255

    def as_square(picture: np.ndarray) -> np.ndarray:
        return np.array(Image.fromarray(picture).resize((64, 64), Image.Resampling.NEAREST))

    assert Unit(control, image=image, annotator=as_square).pixels((64, 64)).min() == 1
    assert Unit(control, image=image, annotator=as_square, resize="stretch").pixels((64, 64)).mean() == 0.5


@dataclass(frozen=True)
class Watching:
    """Remembers at which resolution it looked."""

    seen: list[int]
    detect_resolution: int = 512

    def __call__(self, picture: np.ndarray) -> np.ndarray:
        self.seen.append(self.detect_resolution)
        return picture


@pytest.mark.parametrize(
    ("asked", "resize", "size", "expected"),
    [
        (384, "crop", (512, 512), 384),
        (0, "crop", (512, 512), 512),  # 100 x 200 covers it at 512 x 1024
        (0, "fill", (512, 512), 256),  # and lies inside it at 256 x 512
        (0, "crop", (4096, 4096), 2048),
    ],
)
def test_pixel_perfect_looks_at_the_scale_at_which_the_hint_is_used(control, asked, resize, size, expected):
    seen: list[int] = []
    image = np.zeros((100, 200, 3), np.uint8)
    Unit(control, image=image, annotator=Watching(seen, asked), resize=resize).pixels(size)
    assert seen == [expected]


def test_the_annotator_says_whether_its_hint_may_be_interpolated(control: ControlNet):
    checks = np.kron([[0, 255], [255, 0]], np.ones((16, 16))).astype(np.uint8)[..., None].repeat(3, 2)

    def seen(is_smooth: bool) -> torch.Tensor:
        class Checks:
            meaning = SimpleNamespace(is_smooth=is_smooth)

            def __call__(self, picture: np.ndarray) -> np.ndarray:
                return checks

        return Unit(control, image=BLACK[:, :64], annotator=Checks()).pixels((80, 80))

    assert len(seen(False).unique()) == 2
    assert len(seen(True).unique()) > 2


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ({"hint": BLACK}, (64, 72)),
        ({"hint": BLACK[:60]}, (128, 128)),
        ({"hint": BLACK, "resize": "original"}, (128, 128)),
        ({"image": BLACK[:32], "annotator": inverted}, (128, 256)),
    ],
    ids=["a hint's own", "without a latent", "by the original's rule", "an image"],
)
def test_the_size_of_the_picture_that_a_unit_is_about(control: ControlNet, what, expected):
    assert Unit(control, **what).natural_size(128) == expected


def test_a_mask_of_the_hints_size_is_resized_like_it(control: ControlNet):
    mask = np.zeros((64, 128), np.uint8)
    mask[:, 32:96] = 255
    hint = np.zeros((64, 128, 3), np.uint8)
    assert Unit(control, hint, mask=mask).mask_at((64, 64)).min() == 1
    assert Unit(control, hint, mask=mask[:, :64]).mask_at((64, 64)).mean() == 0.5
    assert Unit(control, hint).mask_at((64, 64)) is None


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ({}, [2, 2, 2, 2]),
        ({"start": 0.25}, [0, 2, 2, 2]),
        ({"end": 0.5}, [2, 2, 0, 0]),
        ({"start": 0.1, "end": 0.9}, [0, 2, 2, 0]),
        ({"schedule": [0, 1, 0.5, 0]}, [0, 2, 1, 0]),
        ({"schedule": lambda progress: 1 - progress}, [2, 1.5, 1, 0.5]),
        ({"schedule": lambda progress: 1 - progress, "end": 0.5}, [2, 1.5, 0, 0]),
    ],
    ids=["always", "from", "to", "whole steps only", "a list", "a function", "both"],
)
def test_the_strength_at_every_step(control: ControlNet, how, expected: list[float]):
    assert Unit(control, BLACK, strength=2.0, **how).strengths(4) == expected


def test_soft_weights_are_the_originals_and_fall_as_far_in_sdxl(control: ControlNet, small: ControlNet):
    assert soft_weights(13) == [0.825 ** (12 - layer) for layer in range(13)]
    assert Unit(small, BLACK, mode="prompt").layers() == soft_weights(10)
    assert (soft_weights(10)[0], soft_weights(10)[-1]) == (soft_weights(13)[0], 1)
    assert np.ptp(np.diff(np.log(soft_weights(10)))) < 1e-9


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ({}, [1.0] * 13),
        ({"mode": "balanced"}, [1.0] * 13),
        ({"mode": "prompt"}, soft_weights(13)),
        ({"mode": "control"}, soft_weights(13)),
        ({"mode": "guess"}, soft_weights(13)),
        ({"mode": "control", "layer_weights": range(13)}, list(range(13))),
    ],
)
def test_the_mode_weighs_the_layers_unless_weights_are_given(control: ControlNet, how, expected):
    assert Unit(control, BLACK, **how).layers() == expected
