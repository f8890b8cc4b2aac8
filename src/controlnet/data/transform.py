"""Both pictures of a pair at the size of a training: resized, cropped, mirrored, alike and by the sample's key."""

import math
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
from PIL import Image

from controlnet.data.order import VIEW, keyed
from controlnet.errors import UserError
from controlnet.images import Rgb

Size = tuple[int, int]  # width, height

MULTIPLE = 64  # pixels: what the U-Nets of Stable Diffusion take
LONGEST = 2  # times the resolution: the longest side of a bucket


@dataclass(frozen=True)
class View:
    """A part of a picture: the picture resized, mirrored if so, then the box cut out of it."""

    original: Size
    resized: Size
    left: int
    top: int
    size: Size
    is_mirrored: bool = False

    def of(self, pixels: Rgb) -> Rgb:
        """What of `pixels` (H, W, c) uint8 is seen. Bilinear over areas, as Pillow and diffusers' script do it."""
        if self.resized != self.original:
            pixels = np.asarray(Image.fromarray(pixels).resize(self.resized, Image.Resampling.BILINEAR))
        if self.is_mirrored:
            pixels = pixels[:, ::-1]
        width, height = self.size
        return np.ascontiguousarray(pixels[self.top : self.top + height, self.left : self.left + width])

    @property
    def is_whole(self) -> bool:
        """Whether the picture is seen as it is."""
        return self.original == self.resized == self.size and not self.is_mirrored


@dataclass(frozen=True)
class Transform:
    """How large the pictures of a training are, and which part of them is seen."""

    resolution: int | None = None
    """Side of the square; with buckets, of the square of the same area. None leaves pictures as they are."""
    random_crop: bool = False
    """A part drawn for each visit instead of the middle."""
    random_flip: bool = False
    """Every second visit mirrored."""
    aspect_buckets: bool = False
    """Sizes of many aspects and about one area, instead of one square."""
    multiple: int = MULTIPLE
    """Of which the sides of buckets are multiples."""

    def __post_init__(self) -> None:
        if self.resolution is not None and (self.resolution < 1 or self.resolution % 8):
            raise UserError(f"--resolution is {self.resolution}; expected a multiple of 8, such as 512")
        if self.resolution is None and (self.random_crop or self.aspect_buckets):
            raise UserError("--random-crop and --aspect-buckets need --resolution; expected a number of pixels")

    @property
    def is_random(self) -> bool:
        return self.random_crop or self.random_flip

    def view(self, original: Size, *key: int) -> View:
        """What is seen of a picture of this size; what is random about it is drawn by `key`."""
        random = np.random.default_rng(keyed(VIEW, *key)) if self.is_random else None
        size = self.size(original)
        resized = _cover(original, size) if self.resolution else original
        room = resized[0] - size[0], resized[1] - size[1]
        # round half to even, as torchvision's CenterCrop
        left, top = round(room[0] / 2), round(room[1] / 2)
        is_mirrored = False
        if random is not None:
            drawn = random.random(3)  # always three: a crop is the same with and without flips
            if self.random_crop:
                left, top = int(drawn[0] * (room[0] + 1)), int(drawn[1] * (room[1] + 1))
            is_mirrored = self.random_flip and drawn[2] < 0.5
        return View(original, resized, left, top, size, bool(is_mirrored))

    def size(self, original: Size) -> Size:
        """Of what is seen of a picture of this size, whatever the key."""
        if self.resolution is None:
            return original
        if self.aspect_buckets:
            return bucket(original, self.resolution, self.multiple)
        return self.resolution, self.resolution


AS_THEY_ARE = Transform()


@lru_cache(2**16)
def bucket(original: Size, resolution: int, multiple: int = MULTIPLE) -> Size:
    """The size of a bucket whose aspect is nearest to the picture's."""
    aspect = math.log(original[0] / original[1])
    return min(buckets(resolution, multiple), key=lambda size: abs(math.log(size[0] / size[1]) - aspect))


@cache
def buckets(resolution: int, multiple: int = MULTIPLE) -> tuple[Size, ...]:
    """All sizes whose sides are multiples, at most the resolution's square in area, of which neither side can grow."""
    longest = LONGEST * resolution // multiple * multiple
    sides = range(multiple, longest + 1, multiple)
    tallest = {width: min(longest, resolution**2 // width // multiple * multiple) for width in sides}
    widest = [(tallest[height], height) for height in sides if tallest[height]]
    return tuple(sorted(size for size in widest if tallest[size[0]] == size[1]))


def _cover(original: Size, size: Size) -> Size:
    """The smallest size of the original's aspect that covers `size`; the longer side rounded down, as torchvision."""
    width, height = original
    if width * size[1] < height * size[0]:
        return size[0], max(size[1], size[0] * height // width)
    return max(size[0], size[1] * width // height), size[1]
