"""A control that is heard and small circles, made once."""

from pathlib import Path

import pytest

from controlnet.base import Base
from controlnet.checkpoints.control_file import ControlMetadata, save_control
from controlnet.data.circles import write_circles
from tiny_generation import loud


@pytest.fixture(scope="session")
def circles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "circles"
    write_circles(folder, count=6, size=64, seed=0)
    return folder


@pytest.fixture(scope="session")
def control(base: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("control") / "control.safetensors"
    made = loud(base)
    save_control(path, made, ControlMetadata.of(base, made, "circle"))
    return path
