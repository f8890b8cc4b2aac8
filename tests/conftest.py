"""No test asks the network for anything or depends on chance or on the machine's speed.

The helpers beside this file (`import tiny`) are importable from every test.
"""

import os
import signal
import sys
from pathlib import Path

import pytest
from hypothesis import settings

os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.insert(0, str(Path(__file__).parent))
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # so shells start what runs in the background, children and all
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory):
    """A tiny base in diffusers' layout, made once."""
    from tiny_folders import save_tiny_base

    return save_tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def base(base_folder):
    """It, opened; who changes it restores it."""
    from controlnet.base import open_base

    return open_base(str(base_folder), device="cpu")
