"""The annotators' networks with formula weights, in the files that the public weights are published in."""

import csv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from controlnet.annotators.lineart_network import AnimeNetwork, LineartNetwork
from controlnet.annotators.weights import WEIGHTS
from controlnet.checkpoints.models import sha256
from parity import weights
from parity.annotators import original

PARITY = Path(weights.__file__).parent


def shapes(keys: str) -> dict[str, tuple[int, ...]]:
    with open(PARITY / f"{keys}.keys.tsv", newline="") as file:
        return {name: tuple(map(int, shape.split(","))) for name, shape in csv.reader(file, delimiter="\t")}


def formula(prefix: str, named: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(weights.tensor(f"{prefix}.{name}", shape)) for name, shape in named.items()}


def hed() -> dict[str, Tensor]:
    tensors = formula("hed", shapes("hed")) | {"norm": torch.tensor([104.0, 117, 123]).view(1, 3, 1, 1)}
    for block in range(1, 6):
        tensors[f"block{block}.projection.weight"] = torch.from_numpy(original(f"hed.block{block}.projection.weight"))
        tensors[f"block{block}.projection.bias"] = torch.zeros(1)
    return tensors


def mlsd() -> dict[str, Tensor]:
    tensors = formula("mlsd", shapes("mlsd_large"))
    variances = {name: 1 + 0.5 * tensor.abs() for name, tensor in tensors.items() if name.endswith("running_var")}
    return tensors | variances


def openpose_body() -> dict[str, Tensor]:
    """The file lacks the names of the original's submodules, which the list of keys has."""
    return formula("openpose", {name.split(".", 1)[1]: shape for name, shape in shapes("openpose_body").items()})


def lineart(prefix: str = "lineart") -> dict[str, Tensor]:
    return formula(prefix, {name: tuple(it.shape) for name, it in LineartNetwork().state_dict().items()})


def lineart_coarse() -> dict[str, Tensor]:
    return lineart("lineart_coarse")


def lineart_anime() -> dict[str, Tensor]:
    """In half precision, as it is large."""
    tensors = formula("anime", {name: tuple(it.shape) for name, it in AnimeNetwork().state_dict().items()})
    return {f"module.{name}": tensor.half() for name, tensor in tensors.items()}


NETWORKS: dict[str, Callable[[], dict[str, Tensor]]] = {
    made.__name__: made for made in (hed, mlsd, openpose_body, lineart, lineart_coarse, lineart_anime)
}


def save(name: str, folder: Path, tensors: dict[str, Tensor] | None = None) -> Path:
    """The file of `weights.WEIGHTS[name]` in `folder`, where `--weights-dir` has it."""
    path = folder / str(WEIGHTS[name].file)
    torch.save(NETWORKS[name]() if tensors is None else tensors, path)
    return path


@contextmanager
def published(folder: Path, *names: str) -> Iterator[Path]:
    """`folder` with the files of `names`, which pass for the public ones until the end; then they are removed."""
    with pytest.MonkeyPatch.context() as patch:
        paths = [save(name, folder) for name in names]
        for name, path in zip(names, paths, strict=True):
            patch.setitem(WEIGHTS, name, replace(WEIGHTS[name], sha256=sha256(path)))
        yield folder
        for path in paths:
            path.unlink()
