"""Training one small network after another: a stage, its steps, and the state that a resume needs.

Every random number is keyed by (seed, stage, step), so an interrupted training ends as an undisturbed one does.
"""

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from controlnet.atomic import write_atomically
from controlnet.devices import has_fast_bfloat16


@dataclass(frozen=True)
class Stage:
    """One training: constant learning rate after a warm-up, then linearly to zero over the last `decay` of it."""

    name: str
    steps: int
    batch: int
    learning_rate: float
    warmup: int = 100
    decay: float = 0.3
    ema: float = 0.99
    stop: int | None = None  # the step at which the next stage takes over, before the rate has come to zero
    parts: int = 1  # a batch's parts, computed side by side: small networks fill one core each, but not two

    @property
    def last(self) -> int:
        return self.stop or self.steps

    def rate(self, step: int) -> float:
        falling = (self.steps - step) / max(1.0, self.decay * self.steps)
        return self.learning_rate * min(1.0, (step + 1) / self.warmup, falling)

    def random(self, seed: int, step: int) -> np.random.Generator:
        return np.random.default_rng([seed, *self.name.encode(), step])


def fit(
    stage: Stage,
    model: nn.Module,
    loss: Callable[[int, slice], Tensor],
    folder: Path,
    report: Callable[[str], None],
    betas: tuple[float, float] = (0.9, 0.99),
    save_every: int = 500,
) -> None:
    """Train `model` in place on `loss(step, part of the batch)`; at the end it holds the exponential mean of weights.

    Continues from `folder/<stage>.safetensors` where that exists, and returns at once where that is finished.
    """
    path = folder / f"{stage.name}.safetensors"
    names, parameters = zip(*((n, p) for n, p in model.named_parameters() if p.requires_grad), strict=True)
    optimizer = torch.optim.AdamW(parameters, lr=stage.learning_rate, betas=betas, weight_decay=0.0, fused=True)
    mean = [p.detach().clone() for p in parameters]
    first = load_state(path, names, parameters, mean, optimizer) if path.exists() else 0
    smoothed = math.nan
    threads = max(1, torch.get_num_threads() // stage.parts)
    pool = ThreadPoolExecutor(stage.parts, initializer=torch.set_num_threads, initargs=(threads,))

    def gradients(step: int, part: slice) -> tuple[Tensor, tuple[Tensor, ...]]:
        value = loss(step, part)
        return value.detach(), torch.autograd.grad(value, parameters)

    for step in range(first, stage.last):
        for group in optimizer.param_groups:
            group["lr"] = stage.rate(step)
        parts = [slice(part, None, stage.parts) for part in range(stage.parts)]
        values, grads = zip(*pool.map(gradients, [step] * stage.parts, parts), strict=True)
        value = torch.stack(values).mean()
        for parameter, *shares in zip(parameters, *grads, strict=True):
            parameter.grad = torch.stack(shares).mean(0) if len(shares) > 1 else shares[0]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        torch._foreach_lerp_(mean, [p.detach() for p in parameters], 1 - min(stage.ema, (1 + step) / (10 + step)))
        if step % 20 == 0:
            smoothed = value.item() if math.isnan(smoothed) else 0.8 * smoothed + 0.2 * value.item()
        if (step + 1) % 100 == 0:
            report(f"{stage.name} {step + 1}/{stage.last} loss {smoothed:.4f}")
        if (step + 1) % save_every == 0 or step + 1 == stage.last:
            save_state(path, step + 1, names, parameters, mean, optimizer)
    with torch.no_grad():
        for parameter, value in zip(parameters, mean, strict=True):
            parameter.copy_(value)


def save_state(
    path: Path,
    step: int,
    names: Sequence[str],
    parameters: Sequence[Tensor],
    mean: Sequence[Tensor],
    optimizer: torch.optim.Optimizer,
) -> None:
    tensors: dict[str, Tensor] = {}
    for name, parameter, average in zip(names, parameters, mean, strict=True):
        state = optimizer.state[parameter]
        tensors |= {f"weight.{name}": parameter.detach(), f"mean.{name}": average}
        tensors |= {f"{key}.{name}": state[key] for key in ("exp_avg", "exp_avg_sq")}
    tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata={"step": str(step)}))


def load_state(
    path: Path,
    names: Sequence[str],
    parameters: Sequence[Tensor],
    mean: Sequence[Tensor],
    optimizer: torch.optim.Optimizer,
) -> int:
    with safe_open(path, framework="pt") as file, torch.no_grad():
        step = int(file.metadata()["step"])
        for name, parameter, average in zip(names, parameters, mean, strict=True):
            parameter.copy_(file.get_tensor(f"weight.{name}"))
            average.copy_(file.get_tensor(f"mean.{name}"))
            moments = {key: file.get_tensor(f"{key}.{name}").to(parameter) for key in ("exp_avg", "exp_avg_sq")}
            optimizer.state[parameter] = {"step": torch.tensor(float(step), device=parameter.device), **moments}
    return step


def fast_numbers(device: torch.device) -> torch.autocast:
    """bfloat16 for convolutions and matrix products where the device is fast at it; weights stay float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=has_fast_bfloat16(device))
