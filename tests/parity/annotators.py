"""The reference numbers of the annotators, as NumPy arrays; README.md beside this file says what each is."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

HERE = Path(__file__).parent


def original(name: str) -> NDArray[Any]:
    """What the original gave under `name`, such as `canny.100_200`."""
    with np.load(HERE / "annotators.npz", allow_pickle=False) as arrays:
        array: NDArray[Any] = arrays[name]
    return array
