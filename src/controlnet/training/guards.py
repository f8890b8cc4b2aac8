"""What stops a training before it spoils: numbers that are not finite, and memory that does not suffice."""

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from controlnet.errors import UserError

TOLERATED = 5  # steps in a row that cannot be taken
READ_EVERY = 10  # steps: to read a number makes a GPU wait
NAMED = 16  # samples of a step that are named


class StopUnlessFinite(Callback):
    """Names each step that was not taken since its loss or gradient was not finite; UserError after five in a row.

    `outputs["taken"]` of a step is a tensor on its device. On a GPU it is read every ten steps, all ten at once.
    """

    def __init__(
        self, samples_of: Callable[[int], list[int]], seed: int, tell: Callable[[str], None], last: Callable[[], str]
    ) -> None:
        """`samples_of` a step number; `last` says where the last checkpoint is."""
        self.samples_of, self.seed, self.tell, self.last = samples_of, seed, tell, last
        self.in_a_row = 0
        self._unread: list[tuple[int, Tensor]] = []

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, index: int) -> None:
        self._unread.append((trainer.global_step - 1, outputs["taken"]))
        if outputs["taken"].device.type == "cpu" or len(self._unread) >= READ_EVERY:
            self._read()

    def on_train_end(self, trainer: Trainer, module: Any) -> None:
        self._read()

    def _read(self) -> None:
        unread, self._unread = self._unread, []
        if not unread:
            return
        for (step, _), taken in zip(unread, torch.stack([taken for _, taken in unread]).tolist(), strict=True):
            self.in_a_row = 0 if taken else self.in_a_row + 1
            if not taken:
                self.tell(f"step {step + 1} was not taken: its loss or gradient is not finite; {self._which(step)}")
            if self.in_a_row == TOLERATED:
                raise UserError(
                    f"{TOLERATED} steps in a row had a loss or gradient that is not finite, the last being step "
                    f"{step + 1}; {self._which(step)}. Weights are as before the first of them; {self.last()}. "
                    "Look at these samples (`controlnet data check`), or try a lower --learning-rate or "
                    "--dtype float32 in a new --out"
                )

    def _which(self, step: int) -> str:
        samples = self.samples_of(step)
        more = f" and {len(samples) - NAMED} more" if len(samples) > NAMED else ""
        return f"samples {', '.join(map(str, samples[:NAMED]))}{more}, seed {self.seed}"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this says that the device, or the machine, has no memory left; other errors of a GPU never do."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    # torch's allocator of the CPU and oneDNN have no class of their own for it
    return isinstance(error, RuntimeError) and any(
        sign in str(error) for sign in ("can't allocate memory", "not enough memory", "MPS backend out of memory")
    )


def remedies(
    micro_batch: int, global_batch: int, ranks: int, *, checkpoints: bool, eight_bit: bool, shares: bool = False
) -> str:
    """What to change so that a step fits, the cheapest first; those in use, or not for shares, are left out."""
    told = []
    if micro_batch > 1:
        half = micro_batch // 2
        accumulation = -(-global_batch // (half * ranks))
        told.append(
            ("" if shares else "--auto-micro-batch, which finds the largest that fits; or ")
            + f"--train-batch-size {half} --gradient-accumulation-steps {accumulation}, which trains the same"
        )
    if not checkpoints:
        told.append("--gradient-checkpointing, which takes less memory and a third more time")
    if not (eight_bit or shares):
        told.append("--use-8bit-adam, which quarters the optimizer's state (CUDA only)")
    told.append("--dtype bfloat16, or a smaller --resolution")
    return (
        f"out of memory with {micro_batch} pair{'s' * (micro_batch > 1)} at once. What helps, the cheapest first:\n  "
        + "\n  ".join(told)
        + "\nThe last checkpoint is whole: the same command with these options goes on from there"
    )
