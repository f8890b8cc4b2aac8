"""Pictures as the networks of transformers take them, without their image processors."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Statistics(NamedTuple):
    """Mean and standard deviation of the channels in [0, 1], by which a network's pictures are normalised."""

    mean: tuple[float, float, float]
    deviation: tuple[float, float, float]


UNIT = Statistics((0, 0, 0), (1, 1, 1))  # [0, 1] as it is
HALF = Statistics((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))  # [-1, 1]
IMAGENET = Statistics((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # of ILSVRC 2012's training set


def normalised(pictures_bhwc: NDArray[np.uint8], statistics: Statistics) -> NDArray[np.float32]:
    """Pictures in [0, 255] -> float32 of mean 0 and deviation 1 over what the network was trained on."""
    mean, deviation = np.array(statistics, dtype=np.float32)
    return (pictures_bhwc.astype(np.float32) / 255 - mean) / deviation
