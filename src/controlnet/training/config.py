"""What a training is told; its field docstrings are the help of `controlnet train`. Imports nothing heavy."""

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from controlnet.choices import BaseChoice
from controlnet.devices import Device, DType
from controlnet.errors import UserError

CONDITIONS = "canny, mlsd, hed, scribble, pose, seg, depth, normal, lineart, circle or a word of your own"

POSITIVE = (
    "max_train_steps",
    "train_batch_size",
    "validation_steps",
    "num_validation_images",
    "checkpointing_steps",
)
# What may differ when the same run goes on: where, how long and how often, not what is learned.
FREE = ("out", "max_train_steps", "validation_steps", "checkpointing_steps", "device", "versions")


@dataclass(frozen=True, kw_only=True)
class TrainConfig(BaseChoice):
    """One training of a ControlNet."""

    data: Path
    """Folder of the pairs: prompt.json with source (hint), target and prompt, as of `controlnet data circles`."""
    out: Path
    """Folder of the run. The same command run again goes on where it stopped."""
    condition: str = "auto"
    """Kind of the hints, stored in the control's metadata; auto finds rings ("circle") and else says "unknown"."""
    validation_data: Path | None = None
    """Folder of held-out pairs; by default the last 2 percent of the data, from 16 up to 64 pairs."""
    max_train_steps: int = 1500
    """Optimizer steps in all."""
    train_batch_size: int = 16
    """Pairs in a step."""
    learning_rate: float | None = None
    """AdamW's; by default 1e-5 as the original's, and 1e-3 for narrow bases like the embedded one."""
    lr_scheduler: Literal["constant", "linear", "cosine"] = "constant"
    """How the learning rate goes: it stays, or falls to zero at --max-train-steps, evenly or as a cosine does."""
    proportion_empty_prompts: float = 0.0
    """Share of prompts replaced by the empty one, drawn anew at each visit; the paper has 0.5, its code 0."""
    only_mid_control: bool = False
    """Control only the middle of the U-Net."""
    seed: int = 0
    """Of the order of the pairs and of each pair's noise."""
    validation_steps: int = 100
    """Steps between validations: held-out loss, hint gain, fidelity, a grid of pictures."""
    num_validation_images: int = 16
    """Pictures generated at each validation, from the first held-out hints; up to 8 of them are drawn."""
    checkpointing_steps: int = 200
    """Steps between checkpoints; the last two are kept."""
    device: Device = "auto"
    """Where to compute; auto takes CUDA, else MPS, else the CPU."""
    dtype: DType = "auto"
    """Precision of the locked base and of the arithmetic; auto is bfloat16 where the device is fast at it, else
    float32 (float16 on a GPU). Trained weights are always float32."""

    def __post_init__(self) -> None:
        wrong = [
            f"{_option(name)} is {getattr(self, name)}; expected 1 or more"
            for name in POSITIVE
            if getattr(self, name) < 1
        ]
        if self.learning_rate is not None and not 0 < self.learning_rate < 1:
            wrong.append(f"--learning-rate is {self.learning_rate}; expected more than 0 and less than 1")
        if not 0 <= self.proportion_empty_prompts <= 1:
            wrong.append(f"--proportion-empty-prompts is {self.proportion_empty_prompts}; expected 0 to 1")
        if self.seed < 0:
            wrong.append(f"--seed is {self.seed}; expected 0 or more")
        if not self.condition.strip():
            wrong.append(f"--condition is empty; expected {CONDITIONS}")
        if wrong:
            raise UserError("\n".join(wrong))

    def to_json(self) -> dict[str, object]:
        """Every field as JSON has it; paths in full, so that the run doesn't depend on where it was started."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: str(value.resolve()) if isinstance(value, Path) else value for name, value in values.items()}


def check_same_run(path: Path, now: dict[str, object]) -> None:
    """Compare a run's record at `path` with what is asked now; UserError names every difference that matters."""
    before = json.loads(path.read_text(encoding="utf-8"))
    names = [name for name in {**before, **now} if name not in FREE and before.get(name) != now.get(name)]
    if names:
        told = "\n".join(f"  {name}: {before.get(name)} in the run, {now.get(name)} now" for name in names)
        raise UserError(
            f"{path.parent} is a run of another training:\n{told}\n"
            "give --out another folder for a new run, or the same options and data to continue this one"
        )


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
