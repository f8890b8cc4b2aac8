"""Pictures to hints, one module for each condition; `table.ANNOTATORS` lists them all.

from controlnet.annotators import Canny
hint = Canny(low=50)("cat.jpg")
"""

from typing import Any


def __getattr__(name: str) -> Any:
    """An annotator's class, imported on first use; AttributeError for any other name."""
    from controlnet.annotators.table import ANNOTATORS, load

    for condition, home in ANNOTATORS.items():
        if home.endswith(f":{name}"):
            return load(condition)
    offered = ", ".join(home.partition(":")[2] for home in ANNOTATORS.values())
    raise AttributeError(f"module 'controlnet.annotators' has no attribute {name!r}; it offers {offered}")
