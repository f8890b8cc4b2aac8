"""The network against what is known of it: its size, its names, its shapes, and its patched pools."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from controlnet.errors import UserError
from controlnet.evaluation.inception import Block, Convolution, Inception, inception_features, open_inception


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random ones, under the published names, with the classifiers that nobody needs."""
    path = tmp_path_factory.mktemp("inception") / "inception.safetensors"
    with torch.device("meta"):
        shapes = {name: it.shape for name, it in Inception().state_dict().items() if not name.endswith("tracked")}
    generator = torch.Generator().manual_seed(0)
    state = {name: drawn(name, shape, generator) for name, shape in shapes.items()}
    save_file({**state, "fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}, path)
    return path


def drawn(name: str, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    """At the scale that keeps activations near one (He et al. 2015)."""
    if name.endswith("conv.weight"):
        return torch.randn(shape, generator=generator) * (2 / shape[1:].numel()) ** 0.5
    return torch.ones(shape) if name.endswith(("weight", "var")) else torch.zeros(shape)


def test_it_has_the_parameters_of_inception_v3_without_its_classifiers() -> None:
    """23,834,568 in all (torchvision), of which the classifier of 1000 classes has 2,049,000."""
    with torch.device("meta"):
        network = Inception()
    assert sum(each.numel() for each in network.parameters()) == 23_834_568 - 2_049_000
    assert sum(isinstance(each, Convolution) for each in network.modules()) == 94


def test_its_tensors_have_the_published_names() -> None:
    with torch.device("meta"):
        shapes = {name: tuple(it.shape) for name, it in Inception().named_parameters()}
    assert shapes["Mixed_5b.branch_pool.conv.weight"] == (32, 192, 1, 1)
    assert shapes["Mixed_6b.branch7x7dbl_5.conv.weight"] == (192, 128, 1, 7)
    assert shapes["Mixed_6a.branch3x3.conv.weight"] == (384, 288, 3, 3)
    assert shapes["Mixed_7a.branch7x7x3_4.conv.weight"] == (192, 192, 3, 3)
    assert shapes["Mixed_7b.branch3x3_2a.conv.weight"] == (384, 384, 1, 3)
    assert shapes["Mixed_7c.branch3x3dbl_3b.bn.weight"] == (384,)


def test_pictures_of_any_size_become_2048_features_that_tell_them_apart(weights: Path) -> None:
    network = open_inception(weights, torch.device("cpu"))
    random = np.random.default_rng(0)
    pictures = [random.integers(0, 256, (side, side + 8, 3), dtype=np.uint8) for side in (32, 64)]
    features = inception_features(network, pictures, torch.device("cpu"))
    assert features.shape == (2, 2048)
    assert np.isfinite(features).all()
    assert not np.allclose(features[0], features[1])


def test_averages_at_the_border_count_only_what_is_there() -> None:
    """What differs from the paper's network, and changes every published FID."""
    block = Block({"branch_pool": [Convolution(1, 1, 1)]}, "average").eval()
    with torch.no_grad():
        block.branch_pool.conv.weight.fill_(1)
        out = block(torch.ones(1, 1, 4, 4))
    assert torch.allclose(out, torch.full_like(out, 1 / np.sqrt(1 + 1e-3)))


def test_other_weights_are_refused_by_the_names_that_do_not_fit(tmp_path: Path) -> None:
    save_file({"conv1.weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=r"missing: .*Conv2d_1a_3x3"):
        open_inception(tmp_path / "other.safetensors", torch.device("cpu"))
