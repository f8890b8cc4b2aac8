"""Content shuffle: a picture's colours and textures without its composition."""

import zlib
from dataclasses import dataclass
from typing import Annotated, ClassVar

import cv2
import numpy as np
from numpy.typing import NDArray

from controlnet.annotators.annotator import Annotator, Meaning, Range
from controlnet.images import Rgb


@dataclass(frozen=True, kw_only=True)
class Shuffle(Annotator):
    """The picture warped along a smooth random field, which its own pixels and the seed decide."""

    meaning: ClassVar[Meaning] = Meaning(
        "shuffle",
        polarity="none",
        values="colours of the picture, elsewhere than they were",
        models=("lllyasviel/control_v11e_sd15_shuffle",),
        is_smooth=True,
    )

    seed: Annotated[int, Range(0, 2**31 - 1)] = 0
    """Another seed warps otherwise."""
    scale: Annotated[int, Range(16, 1024, 16)] = 256
    """Distance in pixels over which the field changes: less tears the picture into smaller pieces."""

    def annotate(self, picture: Rgb) -> Rgb:
        height, width = picture.shape[:2]
        random = np.random.default_rng((self.seed, zlib.crc32(picture.tobytes())))
        x = self._field(random, height, width) * (width - 1)
        y = self._field(random, height, width) * (height - 1)
        return np.asarray(cv2.remap(picture, x, y, cv2.INTER_LINEAR))

    def _field(self, random: np.random.Generator, height: int, width: int) -> NDArray[np.float32]:
        """Smooth noise (height, width) float32 that spans [0, 1]: random values `scale` apart, cubic between them."""
        scale = self.scale
        coarse = random.random((height // scale + 2, width // scale + 2), np.float32)
        size = (width + 2 * scale, height + 2 * scale)  # a margin is cut off, where the cubic has less to lean on
        smooth = cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC)[scale : scale + height, scale : scale + width]
        low, high = float(smooth.min()), float(smooth.max())
        return np.asarray((smooth - low) / max(high - low, 1e-6), np.float32)  # a single pixel has no span
