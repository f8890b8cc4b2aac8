"""CLIP for builds: pictures and words as directions of one space (Radford et al. 2021)."""

# n pictures or texts, d width of the common space
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from controlnet.build.weights import model_folder
from controlnet.devices import Device, DType, choose_device, choose_dtype
from controlnet.evaluation.clip import Features, open_clip
from controlnet.images import Rgb

Embeddings = NDArray[np.float32]  # (n, d), each of length one


class Clip:
    """A CLIP model, from the hub or a folder, that looks at pictures and reads texts."""

    def __init__(self, model: str, device: Device = "auto", dtype: DType = "auto") -> None:
        """UserError for what is no CLIP model or cannot be had."""
        where = choose_device(device)
        self.clip = open_clip(model_folder(model), where, choose_dtype(dtype, where))

    def of_pictures(self, pictures: Sequence[Rgb]) -> Embeddings:
        return _unit(self.clip.see(pictures))

    def of_texts(self, texts: Sequence[str]) -> Embeddings:
        """Of texts cut off after CLIP's 77 tokens."""
        return _unit(self.clip.read(texts))


def _unit(features_nd: Features) -> Embeddings:
    unit: Embeddings = (features_nd / np.linalg.norm(features_nd, axis=1, keepdims=True)).astype(np.float32)
    return unit
