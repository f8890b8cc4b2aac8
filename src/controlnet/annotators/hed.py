"""Soft edges, and scribbles made of them."""

# b batch, h w picture size
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from controlnet.annotators.annotator import Meaning, NetworkAnnotator
from controlnet.annotators.scribble import MEANING, scribble_of_soft_edges
from controlnet.images import Rgb, three_channels

if TYPE_CHECKING:
    from controlnet.annotators.hed_network import HedNetwork


@dataclass(frozen=True, kw_only=True)
class SoftEdges(NetworkAnnotator):
    """What begins with soft edges."""

    @cached_property
    def network(self) -> "HedNetwork":
        from controlnet.annotators.hed_network import HedNetwork
        from controlnet.annotators.tensors import loaded

        return loaded(HedNetwork(), "hed", self)

    def probabilities(self, pictures_bhwc: NDArray[np.uint8]) -> NDArray[np.float32]:
        """How likely each pixel is an edge: (b, h, w) in [0, 1]."""
        from controlnet.annotators.tensors import run

        return run(self.network, pictures_bhwc)


@dataclass(frozen=True, kw_only=True)
class Hed(SoftEdges):
    """Soft edges, bright where they are likely (Xie and Tu 2015)."""

    meaning: ClassVar[Meaning] = Meaning(
        "hed",
        values="0 to 255, how likely an edge is",
        models=("lllyasviel/sd-controlnet-hed", "lllyasviel/control_v11p_sd15_softedge"),
        is_smooth=True,
    )

    safe: bool = False
    """Keep three levels only, so that nothing of the picture's greys leaks through soft edges."""

    def annotate_all(self, pictures_bhwc: NDArray[np.uint8]) -> Sequence[Rgb]:
        from controlnet.annotators.tensors import to_bytes

        edges = self.probabilities(pictures_bhwc)
        return [three_channels(grey) for grey in to_bytes(255 * (in_steps(edges) if self.safe else edges))]


@dataclass(frozen=True, kw_only=True)
class FakeScribble(SoftEdges):
    """A scribble made of a photograph's soft edges."""

    meaning: ClassVar[Meaning] = MEANING

    def annotate_all(self, pictures_bhwc: NDArray[np.uint8]) -> Sequence[Rgb]:
        from controlnet.annotators.tensors import to_bytes

        edges = to_bytes(255 * self.probabilities(pictures_bhwc))
        return [three_channels(scribble_of_soft_edges(grey)) for grey in edges]


def in_steps(probabilities: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    """floor(3 p) / 2, ControlNet 1.1's rule for safe edges: 0, 1/2, and 1 from two thirds on."""
    return np.minimum(np.floor(3 * probabilities) / 2, 1)
