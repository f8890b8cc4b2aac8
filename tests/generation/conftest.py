"""A tiny base and a control for it, for every test of generation that needs no more."""

import pytest

import tiny_folders
from controlnet.base import Base, open_base
from controlnet.control import ControlNet
from tiny_generation import loud


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return open_base(tiny_folders.save_tiny_base(tmp_path_factory.mktemp("base")), device="cpu")


@pytest.fixture(scope="module")
def control(base: Base) -> ControlNet:
    return loud(base)
