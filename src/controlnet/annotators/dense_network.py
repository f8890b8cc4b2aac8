"""Networks of transformers that say something of every pixel: depth, normals, classes."""

# b batch, c channels, h w picture size, t tokens, d width
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch.nn.functional as F
import transformers
from numpy.typing import NDArray
from torch import Tensor, nn

from controlnet.annotators.pixels import HALF, IMAGENET, UNIT, Statistics, normalised
from controlnet.annotators.tensors import run
from controlnet.annotators.weights import load_model


def dpt_hybrid(model: Any, x_bchw: Tensor) -> Tensor:
    """Inverse depth (b, 1, h, w) of pictures of any size in steps of 32, by the model's own parts.

    Its own forward takes only squares of the size of its training: it neither stretches the position embeddings, as
    the original's does, nor tells the neck how many patches a picture is high and wide.
    """
    embedded = model.dpt.embeddings(x_bchw, interpolate_pos_encoding=True)
    x_btd, layers = embedded.last_hidden_states, []
    for layer in model.dpt.encoder.layer:
        x_btd = layer(x_btd)
        layers.append(x_btd)
    # of the four places that the neck reads from, the first two are convolutions before the transformer
    features = [*embedded.intermediate_activations, *(layers[place] for place in model.config.backbone_out_indices[2:])]
    high, wide = (side // model.config.patch_size for side in x_bchw.shape[-2:])
    depth_bhw: Tensor = model.head(model.neck(features, high, wide))
    return depth_bhw[:, None]


@dataclass(frozen=True)
class Kind:
    """How one of the networks is fed and read."""

    model: str
    """The class in transformers."""
    statistics: Statistics
    multiple: int
    """What the sides of its pictures are multiples of."""
    forward: Callable[[Any, Tensor], Tensor]
    """(b, 3, h, w) -> (b, c, h', w')."""


# by their names in weights.WEIGHTS
KINDS: dict[str, Kind] = {
    "dpt_hybrid": Kind("DPTForDepthEstimation", HALF, 32, dpt_hybrid),
    "depth_anything": Kind("DepthAnythingForDepthEstimation", IMAGENET, 14, lambda m, x: m(x).predicted_depth[:, None]),
    "tipsv2": Kind("Tipsv2DptForNormalEstimation", UNIT, 14, lambda m, x: m(x).normals),
    "upernet": Kind("UperNetForSemanticSegmentation", IMAGENET, 32, lambda m, x: m(x).logits.argmax(1, keepdim=True)),
}


class DenseNetwork(nn.Module):
    """One of KINDS with its weights."""

    def __init__(self, name: str, weights_dir: Path | None):
        super().__init__()
        self.kind = KINDS[name]
        self.model = load_model(getattr(transformers, self.kind.model), name, weights_dir)

    def look(self, pictures_bhwc: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Pictures of one size (b, h, w, 3) -> what the network says of each pixel (b, h, w, c): inverse depth in its
        own units, a normal not yet of length one, or the index of a class."""
        return run(self, normalised(pictures_bhwc, self.kind.statistics)).transpose(0, 2, 3, 1)

    def forward(self, x_bchw: Tensor) -> Tensor:
        """Normalised pictures -> (b, c, h, w), seen at the next size that the network takes."""
        step = self.kind.multiple
        high, wide = (max(1, round(side / step)) * step for side in x_bchw.shape[-2:])
        seen = _resized(x_bchw, (high, wide), "bicubic")
        return _resized(self.kind.forward(self.model, seen), x_bchw.shape[-2:], "bilinear")


def _resized(x_bchw: Tensor, size: tuple[int, ...], mode: str) -> Tensor:
    if x_bchw.shape[-2:] == size:
        return x_bchw
    return F.interpolate(x_bchw, size=size, mode=mode, align_corners=False)
