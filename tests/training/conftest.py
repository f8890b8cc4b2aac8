"""Small circles, made once."""

from pathlib import Path

import pytest

from controlnet.data.circles import write_circles


@pytest.fixture(scope="session")
def circles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "circles"
    write_circles(folder, count=24, size=64, seed=0)
    return folder
