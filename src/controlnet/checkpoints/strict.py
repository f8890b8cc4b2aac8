"""Every tensor accounted for: what a file holds and what a model wants must be the same."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from controlnet.errors import UserError

NAMED = 10  # of each kind of defect; a wrong file can have a thousand


def check_fit(source: str, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """UserError naming all tensors of `source` that are missing, unexpected or of another shape than wanted."""
    unlike = sorted(name for name in wanted.keys() & found.keys() if wanted[name].shape != found[name].shape)
    complaints = {
        "missing": sorted(wanted.keys() - found.keys()),
        "unexpected": sorted(found.keys() - wanted.keys()),
        "of another shape": [f"{it} {tuple(found[it].shape)}, expected {tuple(wanted[it].shape)}" for it in unlike],
    }
    lines = [f"{len(which)} {what}: {_enumerated(which)}" for what, which in complaints.items() if which]
    if lines:
        raise UserError(
            f"{source} does not fit this model: it was made for another one or is damaged; choose the file that was "
            "made for it.\n  " + "\n  ".join(lines)
        )


def _enumerated(names: Sequence[str]) -> str:
    more = [f"and {len(names) - NAMED} more"] if len(names) > NAMED else []
    return ", ".join([*names[:NAMED], *more])
