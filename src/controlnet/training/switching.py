"""A run that goes on otherwise than it was begun: unlocked, locked again, at another learning rate.

What was trained before keeps its optimizer state; what is new begins with none.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

DECODER, AVERAGE = "control.decoder.", "average."


def adapt(checkpoint: dict[str, Any], state: Mapping[str, Tensor], optimizers: Mapping[str, Any]) -> None:
    """Change a checkpoint to what a module with this `state` and these fresh optimizers takes up.

    Learning rates and the like are those of now; the schedule goes on from its step.
    """
    stored = checkpoint["state_dict"]
    optional = {name for name in (*state, *stored) if name.startswith((DECODER, AVERAGE))}
    checkpoint["state_dict"] = {name: stored[name] for name in stored if name not in optional or name in state} | {
        name: state[name] for name in optional if name in state and name not in stored
    }
    fresh, rates = optimizers["optimizer"], optimizers["lr_scheduler"]["scheduler"]
    for saved in checkpoint["optimizer_states"]:
        groups = fresh.state_dict()["param_groups"]
        kept = {number for group in groups for number in group["params"]}
        saved["state"] = {number: value for number, value in saved["state"].items() if number in kept}
        saved["param_groups"] = groups
    for saved in checkpoint["lr_schedulers"]:
        shares = [share(saved["last_epoch"]) for share in rates.lr_lambdas]
        saved |= {
            "base_lrs": rates.base_lrs,
            "lr_lambdas": [None] * len(shares),
            "_last_lr": [rate * share for rate, share in zip(rates.base_lrs, shares, strict=True)],
        }
        for group, rate in zip(groups, saved["_last_lr"], strict=True):
            group["lr"] = rate
