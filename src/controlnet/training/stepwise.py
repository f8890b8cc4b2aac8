"""One optimizer step at a time: its micro-batches, the sum over processes, the guards.

Lightning's automatic loop takes a micro-batch for a step and forgets it. Here a step is a whole, so it can be repeated
in smaller parts when memory does not suffice, and is either taken or not.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from controlnet.errors import UserError
from controlnet.training.config import TrainConfig
from controlnet.training.guards import is_out_of_memory, remedies
from controlnet.training.module import ControlNetModule
from controlnet.training.optimizers import in_rows
from controlnet.training.ranks import Ranks
from controlnet.training.rounding import can_round, with_rounded_weights
from controlnet.training.steps import Share


@dataclass(frozen=True)
class Stepping:
    """How a step is taken."""

    global_batch: int
    """Pairs in a step, over all processes and micro-batches."""
    micro_batch: int
    """Pairs at once, at most."""
    max_grad_norm: float
    """0 leaves gradients as they are."""
    halves_micro_batch: bool
    """Whether to go on with smaller micro-batches when memory does not suffice."""
    ranks: Ranks
    tell: Callable[[str], None]
    may_round: bool
    """Whether gradients may stay in bfloat16: of one process, by our AdamW, neither compiled nor computed again."""
    remedies: Callable[[int], str]
    """What to tell when memory does not suffice for so many pairs at once and nothing is left to try."""

    @classmethod
    def of(cls, config: TrainConfig, ranks: Ranks, tell: Callable[[str], None]) -> "Stepping":
        global_batch, micro_batch = config.pairs_per_step, config.train_batch_size
        told = partial(
            remedies,
            global_batch=global_batch,
            ranks=ranks.place.ranks,
            checkpoints=config.gradient_checkpointing,
            eight_bit=config.use_8bit_adam,
            shares=ranks.share_out,
        )
        may_round = not (ranks.are_many or config.compile or config.gradient_checkpointing or config.use_8bit_adam)
        halves = config.auto_micro_batch
        return cls(global_batch, micro_batch, config.max_grad_norm, halves, ranks, tell, may_round, told)


class StepwiseModule(ControlNetModule):
    """A ControlNetModule to which a batch is all that a process computes of one optimizer step."""

    def __init__(self, stepping: Stepping, *arguments: Any, **named: Any) -> None:
        """The rest is for ControlNetModule."""
        super().__init__(*arguments, **named)
        self.automatic_optimization = False
        self.stepping, self.micro_batch = stepping, stepping.micro_batch

    def on_train_start(self) -> None:
        super().on_train_start()
        if not self.stepping.ranks.share_out:  # else they were compared before
            self.stepping.ranks.check_same(list(self.trained().values()))

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return batch  # micro-batch by micro-batch, so that accumulation takes no memory

    def training_step(self, share: Share, index: int) -> dict[str, Tensor]:
        """Loss of the step, the mean over all pairs of all processes, and whether the step was taken."""
        optimizer: Any = self.optimizers()
        loss = self._compute(share)
        gradients = [parameter.grad for parameter in self.trained().values() if parameter.grad is not None]
        self.stepping.ranks.sum([loss] if self.stepping.ranks.share_out else [*gradients, loss])
        taken = self._take(optimizer, gradients, loss)
        optimizer.zero_grad()  # they would lie beside all that the next step computes
        self.lr_schedulers().step()  # type: ignore[union-attr]  # one schedule
        return {"loss": loss, "taken": taken}

    def _compute(self, share: Share) -> Tensor:
        """Gradients of this process's part of the step; its part of the loss. Again, in halves, if memory ends."""
        while True:
            try:
                return self._accumulate(share)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                self._make_room(error)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _make_room(self, error: Exception) -> None:
        """Halve the micro-batch; UserError where that is not wanted or no help."""
        stepping = self.stepping
        if not stepping.halves_micro_batch or self.micro_batch == 1:
            raise UserError(stepping.remedies(self.micro_batch)) from error
        self.micro_batch = (self.micro_batch + 1) // 2
        stepping.tell(f"out of memory: the step is repeated with {self.micro_batch} pairs at once, and so are the next")

    def _accumulate(self, share: Share) -> Tensor:
        self.optimizers().zero_grad()  # type: ignore[union-attr]  # one optimizer
        (reading, draw), loss = share, torch.zeros((), device=self.device)
        starts = range(0, len(draw.timestep_b), self.micro_batch)
        for start in starts:
            part = slice(start, start + self.micro_batch)
            micro_draw = draw[part].to(self.device)
            weight = len(micro_draw.timestep_b) / self.stepping.global_batch
            part_of_loss = self.loss((reading[part].on(self.base), micro_draw), self._model(len(starts) == 1)) * weight
            torch.clear_autocast_cache()  # else rounded copies of all weights lie beside all gradients
            self.manual_backward(part_of_loss)
            loss += part_of_loss.detach()
        return loss

    def _model(self, is_alone: bool) -> Callable[..., Tensor]:
        """What predicts: this module, or this with its weights rounded beforehand if their gradients can stay so."""
        if not (self.stepping.may_round and can_round(self.device)):
            return self
        if is_alone:
            return with_rounded_weights(self, {f"control.{name}": each for name, each in self.trained().items()})
        for parameter in self.trained().values():
            parameter.grad_dtype = parameter.dtype  # gradients are summed up; the step before may have been alone
        return self

    def _take(self, optimizer: Any, gradients: list[Tensor], loss: Tensor) -> Tensor:
        """Step, unless loss or gradients are not finite; whether it was taken, a bool on the device.

        With the fused optimizer, which also makes gradients that are too large smaller, the device decides and nobody
        waits for it.
        """
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        if scaler is not None:
            scaler.unscale_(optimizer.optimizer)
        norm, most = norm_of(gradients), self.stepping.max_grad_norm
        taken = torch.isfinite(norm) & torch.isfinite(loss)
        if scaler is None and getattr(optimizer.optimizer, "_step_supports_amp_scaling", False):
            optimizer.optimizer.grad_scale = (norm / most).clamp(min=1) if most else None
            optimizer.optimizer.found_inf = (~taken).float()
        else:
            if most:
                clip_grads_with_norm_(self.trained().values(), most, norm)
            if scaler is None and not taken:
                optimizer.zero_grad()  # parameters without gradient stay as they are
        optimizer.step()
        if scaler is not None:
            # it lowers its scale until nothing overflows: only what remains then is an error; get_scale() would wait
            taken = taken | (torch.isfinite(loss) & (scaler._get_scale_async() > 1))
        return taken


def norm_of(gradients: list[Tensor]) -> Tensor:
    """The norm of all together, in float32 whatever their precision."""
    if all(each.dtype == torch.float32 for each in gradients):
        norm = get_total_norm(gradients)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm  # of weights that are shared out
    parts = [part for each in gradients for part in in_rows(each)]
    precise = torch.empty(max(part.numel() for part in parts), device=parts[0].device)  # one for all: it stays hot
    norms = torch.empty(len(parts), device=precise.device)
    for place, part in enumerate(parts):
        norms[place] = precise.as_strided(part.shape, part.stride()).copy_(part).norm()
    return norms.norm()
