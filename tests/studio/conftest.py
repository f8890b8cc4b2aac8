"""One studio without a page for all tests: the embedded base and the circle control are opened once."""

from pathlib import Path

import pytest

from controlnet.studio.desk import Desk
from controlnet.studio.offer import Offer


def offer_in(folder: Path, **given) -> Offer:
    options = {"bases": ["embedded"], "controls": [], "runs": [], "loras": None, "data": None} | given
    return Offer.of(**options, out=folder, device="cpu", dtype="float32")


@pytest.fixture(scope="session")
def desk(tmp_path_factory) -> Desk:
    return Desk(offer_in(tmp_path_factory.mktemp("studio")))
