"""AdamW as a training asks for it, and how the learning rate goes, by diffusers' names: functions of the step."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.adamw import adamw
from torch.optim.lr_scheduler import LambdaLR

from controlnet.errors import UserError
from controlnet.training.options import LrScheduler, OptimizerOptions

# (step, steps in all) -> share of the learning rate
Shares = Callable[[int, int], float]


@dataclass(frozen=True)
class Schedule:
    """How the learning rate goes, as in diffusers' `get_scheduler`."""

    name: LrScheduler = "constant"
    warmup_steps: int = 0
    num_cycles: int = 1
    power: float = 1.0
    step_rules: str | None = None

    def shares(self, learning_rate: float = 1.0) -> Shares:
        """UserError for rules that are none. `polynomial` ends at 1e-7, so it needs the learning rate."""
        return SCHEDULES[self.name](self, learning_rate)


@dataclass(frozen=True)
class Optimization:
    """AdamW's settings; `learning_rate_unlocked` is that of the base's decoder."""

    learning_rate: float = 1e-5
    learning_rate_unlocked: float = 2e-6
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.01
    epsilon: float = 1e-8
    is_8bit: bool = False
    schedule: Schedule = field(default_factory=Schedule)

    @classmethod
    def of(cls, config: OptimizerOptions, pairs_per_step: int) -> "Optimization":
        """Of a resolved config; with `scale_lr` the learning rates are those of one pair."""
        assert config.learning_rate is not None, "resolved"
        times = pairs_per_step if config.scale_lr else 1
        return cls(
            config.learning_rate * times,
            (config.learning_rate_unlocked or 0.0) * times,
            (config.adam_beta1, config.adam_beta2),
            config.adam_weight_decay,
            config.adam_epsilon,
            config.use_8bit_adam,
            Schedule(
                config.lr_scheduler,
                config.lr_warmup_steps,
                config.lr_num_cycles,
                config.lr_power,
                config.lr_step_rules,
            ),
        )

    def optimizer(self, control: Iterable[nn.Parameter], decoder: Sequence[nn.Parameter]) -> Optimizer:
        """Of the control's parameters and, if there are any, of the unlocked decoder's.

        UserError for 8 bits without bitsandbytes.
        """
        groups: list[dict[str, Any]] = [{"params": list(control), "lr": self.learning_rate}]
        groups += [{"params": list(decoder), "lr": self.learning_rate_unlocked}] if decoder else []
        shared = dict(betas=self.betas, eps=self.epsilon, weight_decay=self.weight_decay)
        if self.is_8bit:
            for weight in (weight for group in groups for weight in group["params"]):
                weight.data = weight.data.contiguous()  # as its first step does: a run that goes on computes alike
            return adamw_8bit()(groups, **shared)
        return ChannelsLastAdamW(groups, fused=True, **shared)  # type: ignore[arg-type]  # a dict loses their types

    def rates(self, optimizer: Optimizer, steps: Callable[[], int]) -> LambdaLR:
        """The learning rates over the steps, of which there are `steps()` in all."""
        shares = [self.schedule.shares(group["lr"]) for group in optimizer.param_groups]
        return LambdaLR(optimizer, [_of_step(share, steps) for share in shares])


ADAMW = Optimization()
AT_ONCE = 2**19  # numbers: 2 MB in float32
STORED_ALIKE = 4  # parameters, gradients, their means and those of their squares; then come the steps


class ChannelsLastAdamW(torch.optim.AdamW):
    """AdamW to which convolutions that are channels last are as they are in memory.

    On a CPU torch's fused step else copies each of them into another order and back: six times the time. Gradients may
    be less precise than parameters: each is converted when its turn comes.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            lists: tuple[list[Tensor], ...] = ([], [], [], [], [], [])
            self._init_group(group, *lists)
            for parameters, gradients, means, squares, maxima, steps in _alike(lists):
                adamw(
                    parameters,
                    gradients,
                    means,
                    squares,
                    maxima,
                    steps,
                    fused=True,
                    grad_scale=getattr(self, "grad_scale", None),
                    found_inf=getattr(self, "found_inf", None),
                    amsgrad=False,
                    beta1=group["betas"][0],
                    beta2=group["betas"][1],
                    lr=group["lr"],
                    weight_decay=group["weight_decay"],
                    eps=group["eps"],
                    maximize=False,
                )
        return loss

    def _init_group(self, group: dict[str, Any], *lists: list[Tensor]) -> bool:
        """Fill the lists (parameters, gradients, states, ...) with views of the same memory, which the step changes."""
        is_complex: bool = super()._init_group(group, *lists)  # type: ignore[no-untyped-call]
        several = [tensors for tensors in lists if tensors]
        for place, together in enumerate(zip(*several, strict=True)):
            if together[0].ndim == 4 and all(map(_is_channels_last, together[:STORED_ALIKE])):
                for tensors in several[:STORED_ALIKE]:
                    tensors[place] = tensors[place].permute(0, 2, 3, 1)
        return is_complex


def _alike(lists: tuple[list[Tensor], ...]) -> Iterator[tuple[list[Tensor], ...]]:
    """The lists as they are; or, where gradients are less precise, some rows of one parameter after the others."""
    parameters, gradients, means, squares, no_maxima, steps = lists
    if all(gradient.dtype == parameter.dtype for parameter, gradient in zip(parameters, gradients, strict=True)):
        yield lists
        return
    for *tensors, step in zip(parameters, gradients, means, squares, steps, strict=True):
        before = step.clone()
        for rows in zip(*map(in_rows, tensors), strict=True):
            step.copy_(before)  # each part counts the step
            parameter, gradient, mean, square = rows
            yield [parameter], [gradient.to(parameter.dtype)], [mean], [square], no_maxima, [step]


def in_rows(x: Tensor) -> Sequence[Tensor]:
    """Parts of `x` along its first dimension, which stay in the caches where they are copied."""
    return torch.split(x, max(1, AT_ONCE * len(x) // x.numel())) if x.ndim else (x,)


def _is_channels_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last)


def adamw_8bit() -> Any:
    """bitsandbytes' AdamW. UserError where it is not installed."""
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise UserError(
            f"--use-8bit-adam needs bitsandbytes ({error}); `pip install 'controlnet[train]'`, or leave the option out"
        ) from error
    return AdamW8bit


def _of_step(share: Shares, steps: Callable[[], int]) -> Callable[[int], float]:
    return lambda step: share(step, steps())


def warmed_up(step: int, schedule: Schedule) -> float:
    """From 0 to 1 over the warm-up."""
    return 1.0 if step >= schedule.warmup_steps else step / schedule.warmup_steps


def progress(step: int, steps: int, schedule: Schedule) -> float:
    """From 0 at the end of the warm-up to 1 at the last step, and on."""
    return (step - schedule.warmup_steps) / max(1, steps - schedule.warmup_steps)


def _falling(shape: Callable[[float], float]) -> Callable[[Schedule, float], Shares]:
    """After the warm-up the share is a function of the progress."""

    def shares(schedule: Schedule, learning_rate: float) -> Shares:
        def share(step: int, steps: int) -> float:
            if step < schedule.warmup_steps:
                return warmed_up(step, schedule)
            return max(0.0, shape(progress(step, steps, schedule)))

        return share

    return shares


def _cosine_with_restarts(schedule: Schedule, learning_rate: float) -> Shares:
    def shape(done: float) -> float:
        return 0.0 if done >= 1 else _half_cosine(schedule.num_cycles * done % 1.0)

    return _falling(shape)(schedule, learning_rate)


def _polynomial(schedule: Schedule, learning_rate: float) -> Shares:
    last = 1e-7 / learning_rate  # diffusers' last learning rate

    def shape(done: float) -> float:
        return last if done > 1 else (1 - last) * (1 - done) ** schedule.power + last

    return _falling(shape)(schedule, learning_rate)


def _piecewise_constant(schedule: Schedule, learning_rate: float) -> Shares:
    *rules, last = (schedule.step_rules or "").split(",")
    try:
        pairs = [(float(share), int(until)) for share, until in (rule.split(":") for rule in rules)]
        default = float(last)
    except ValueError as error:
        raise UserError(
            f"--lr-step-rules is {schedule.step_rules!r}; expected SHARE:STEP,...,SHARE such as 1:1000,0.1:2000,0.01"
        ) from error
    return lambda step, steps: next((share for share, until in sorted(pairs, key=_until) if step < until), default)


def _until(rule: tuple[float, int]) -> int:
    return rule[1]


def _half_cosine(done: float) -> float:
    return (1 + math.cos(math.pi * done)) / 2


SCHEDULES: dict[LrScheduler, Callable[[Schedule, float], Shares]] = {
    "constant": lambda schedule, rate: lambda step, steps: 1.0,
    "constant_with_warmup": lambda schedule, rate: lambda step, steps: warmed_up(step, schedule),
    "linear": _falling(lambda done: 1 - done),
    "cosine": _falling(_half_cosine),
    "cosine_with_restarts": _cosine_with_restarts,
    "polynomial": _polynomial,
    "piecewise_constant": _piecewise_constant,
}
