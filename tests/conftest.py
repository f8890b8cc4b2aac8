"""No test asks the network for anything or depends on chance or on the machine's speed.

The helpers beside this file (`import tiny`) are importable from every test.
"""

import os
import sys
from pathlib import Path

from hypothesis import settings

os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.insert(0, str(Path(__file__).parent))
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")
