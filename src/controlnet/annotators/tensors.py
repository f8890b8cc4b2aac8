"""Pictures into a network and maps out of it, alike for all annotators with a network of ours."""

# b batch, c channels, h height, w width
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from controlnet.annotators.annotator import NetworkAnnotator
from controlnet.annotators.weights import load_network
from controlnet.devices import choose_device, choose_dtype

Network = TypeVar("Network", bound=nn.Module)

CPU_PIXELS = 256 * 256  # at once; measured: more than that outgrows the caches, and fewer leave layers short of work


def placed(network: Network, options: NetworkAnnotator) -> Network:
    """The network where and as precisely as the annotator's options say."""
    device = choose_device(options.device)
    network.to(device, choose_dtype(options.dtype, device))
    return network


def loaded(
    network: Network,
    name: str,
    options: NetworkAnnotator,
    translate: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] = dict,
) -> Network:
    """One of our networks with the weights called `name`, as `weights.load_network` reads them, and placed."""
    return placed(load_network(network, name, options.weights_dir, translate), options)


def run(network: nn.Module, pictures_bhwc: NDArray[Any]) -> NDArray[np.float32]:
    """What `network` makes of pictures, given to it as (b, c, h, w) in its precision; bytes fit into all exactly.

    On a CPU as many at once as is fastest, elsewhere all.
    """
    weight = next(network.parameters())
    pictures_bchw = torch.from_numpy(np.ascontiguousarray(pictures_bhwc)).permute(0, 3, 1, 2)
    at_once = max(1, CPU_PIXELS // pictures_bchw[0, 0].numel()) if weight.device.type == "cpu" else len(pictures_bchw)
    with torch.inference_mode():
        maps = [
            network(some.to(weight.device, weight.dtype)).float().cpu() for some in torch.split(pictures_bchw, at_once)
        ]
    together: NDArray[np.float32] = torch.cat(maps).numpy()
    return together


def to_bytes(values: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """Values in [0, 255], cut off outside, rounded down as the original does."""
    return values.clip(0, 255).astype(np.uint8)
