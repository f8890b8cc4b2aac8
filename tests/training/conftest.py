"""A tiny base and small circles, made once."""

from pathlib import Path

import pytest

from controlnet.base import Base, open_base
from controlnet.data.circles import write_circles
from tiny_folders import save_tiny_base


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def base(base_folder: Path) -> Base:
    return open_base(str(base_folder), device="cpu")


@pytest.fixture(scope="session")
def circles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "circles"
    write_circles(folder, count=24, size=64, seed=0)
    return folder
