"""What several tests of builds share."""

import pytest


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory):
    """A folder with the CLIP of shapes."""
    from build import shape_clip  # what it takes to train is imported by none of the other tests

    return shape_clip.train(tmp_path_factory.mktemp("clip"))
