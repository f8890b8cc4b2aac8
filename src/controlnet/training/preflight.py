"""`controlnet train --dry-run`: what a training will need, found by three real steps that leave nothing behind."""

import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from controlnet.base import Base
from controlnet.checkpoints.control_file import NAME_IN_RUN, save_control
from controlnet.errors import DefectsFound
from controlnet.training.cache import encode, fingerprint
from controlnet.training.callbacks import most_memory
from controlnet.training.checkpoint import checkpoint_path
from controlnet.training.config import TrainConfig
from controlnet.training.ranks import Ranks
from controlnet.training.run import make_metadata, make_module, make_trainer, open_all, quietly
from controlnet.training.sources import caching_of, open_pairs
from controlnet.training.steps import Place, Steps, loader
from controlnet.training.stepwise import Stepping, StepwiseModule

STEPS = 3


@dataclass(frozen=True)
class Needs:
    """What three steps have shown. Sizes in bytes, times in seconds."""

    steps: list[float]
    """Time of each; the first also sets things up."""
    memory: dict[str, int]
    """What is held, and what else a step takes; together the most that was in use."""
    checkpoint: int
    control: int
    cached_pair: float
    """Of the cache, for each pair."""

    @property
    def step(self) -> float:
        return min(self.steps[1:])

    def disk(self, pairs: int, checkpoints: int) -> int:
        """With one checkpoint more than is kept, for the next is whole before the oldest goes."""
        return self.control + (checkpoints + 1) * self.checkpoint + int(self.cached_pair * pairs)


def preflight(config: TrainConfig) -> None:
    """Print the resolved settings, and memory, time and disk that the training needs; write nothing to `config.out`.

    DefectsFound if the disk is too small. UserError for all that `train` could not do, and if memory does not suffice.
    """
    console = Console(soft_wrap=True, highlight=False)
    ranks = Ranks.find(config.devices, config.num_nodes, config.strategy)
    ranks.begin()
    config, dataset, base = open_all(config, ranks)
    few = replace(config, max_train_samples=min(len(dataset), max(2, config.train_batch_size)))
    with tempfile.TemporaryDirectory(prefix="controlnet-dry-run-") as folder:
        needs = try_steps(few, base, Path(folder), ranks, Console(stderr=True, quiet=True))
    disk, free = needs.disk(len(dataset), config.checkpoints_total_limit), _free(config.out)
    console.print(_table("settings", [(f"--{name.replace('_', '-')}", value) for name, value in _told(config)]))
    console.print(_table(f"memory of {_where(base)}", [(what, _size(size)) for what, size in needs.memory.items()]))
    console.print(_table("time and disk", _time_and_disk(config, needs, len(dataset), disk, free)))
    if disk > free:
        raise DefectsFound(f"{config.out} has {_size(free)} free, the run needs {_size(disk)}; make room for it")


def try_steps(config: TrainConfig, base: Base, folder: Path, ranks: Ranks, console: Console) -> Needs:
    """Train three steps on the config's first pairs in this process alone, as one of all; save once, into `folder`."""
    dataset = open_pairs(config)
    pairs = encode(base, dataset, folder, fingerprint(dataset), console, caching_of(config), config.seed)
    cached = _size_of(folder)
    stopwatch = Stopwatch(base.device)
    share = config.pairs_per_step // ranks.place.ranks
    alone = Ranks(Place(), 1, 1, ranks.local_rank, ranks.is_external)
    config = replace(config, max_train_steps=STEPS, devices=1, num_nodes=1)
    module = make_module(config, base, pairs, Stepping.of(config, alone, console.print))
    with quietly():
        trainer = make_trainer(config, base, alone)
        trainer.callbacks += [stopwatch]  # type: ignore[attr-defined]  # it is a list
        steps = Steps(pairs, config.seed, share, len(base.schedule.alphas_cumprod), config.proportion_empty_prompts, 0)
        trainer.fit(module, loader(steps, config.dataloader_num_workers))
    checkpoint = checkpoint_path(folder, STEPS)
    trainer.save_checkpoint(checkpoint)
    save_control(folder / NAME_IN_RUN, module.control, make_metadata(config, base, module, "unknown", {}))
    return Needs(
        stopwatch.seconds,
        _memory(base, module, trainer, stopwatch.peak),
        checkpoint.stat().st_size,
        (folder / NAME_IN_RUN).stat().st_size,
        cached / len(pairs),
    )


class Stopwatch(Callback):
    """Times of the steps, and the most memory in use: on a GPU torch's, else the process's."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.seconds, self.peak = device, list[float](), 0
        self._since = 0.0

    def on_train_start(self, trainer: Trainer, module: Any) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        self._since = self._now()

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, index: int) -> None:
        now = self._now()
        self.seconds.append(now - self._since)
        self._since = now
        self.peak = most_memory(self.device)

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def gradient_type(parameter: Tensor) -> torch.dtype:
    """Of its gradient: its own, unless gradients stay rounded (see `rounding`)."""
    return getattr(parameter, "grad_dtype", None) or parameter.dtype


def _memory(base: Base, module: StepwiseModule, trainer: Trainer, peak: int) -> dict[str, int]:
    """Bytes of what is held from step to step, and of the rest of the most that was in use."""
    trained = list(module.trained().values())
    (optimizer,) = trainer.optimizers
    state = [x for each in optimizer.state.values() for x in each.values() if isinstance(x, Tensor)]
    encoders = [base.vae, *base.text_encoders]
    held = {
        "the base's U-Net": _bytes(base.unet.parameters()),
        "VAE and text encoders": sum(_bytes(part.parameters()) for part in encoders),
        "trained weights": _bytes(trained),
        "their gradients": sum(each.numel() * gradient_type(each).itemsize for each in trained),
        "the optimizer's state": _bytes(state),
        "the weights' running mean": _bytes(module.average.buffers()) if module.average else 0,
    }
    rest = max(0, peak - sum(held.values()))
    return {**held, "activations, libraries and the rest": rest, "most in use": peak}


def _time_and_disk(config: TrainConfig, needs: Needs, pairs: int, disk: int, free: int) -> list[tuple[str, str]]:
    steps, batch = config.max_train_steps, config.pairs_per_step
    ranks = config.devices * config.num_nodes
    return [
        ("a step", f"{needs.step:.3g} s for {batch // ranks} pairs (the first {needs.steps[0]:.3g} s)"),
        ("images/s", f"{batch / needs.step:.3g}" + (f", without what {ranks} processes tell each other" * (ranks > 1))),
        ("all steps", f"{_duration(steps * needs.step)} for {steps}, without validations"),
        ("passes over the data", f"{steps * batch / pairs:.3g} of {pairs} pairs"),
        ("a checkpoint", _size(needs.checkpoint)),
        ("the control", _size(needs.control)),
        ("the cache", _size(needs.cached_pair * pairs)),
        ("disk in all", f"{_size(disk)}, and some for pictures; {_size(free)} free"),
    ]


def _told(config: TrainConfig) -> Iterator[tuple[str, str]]:
    for name, value in config.to_json().items():
        if value not in (None, [], False):
            yield name, str(value)


def _table(title: str, rows: Sequence[tuple[str, str]]) -> Table:
    table = Table(title=title, title_justify="left", show_header=False)
    for row in rows:
        table.add_row(*row)
    return table


def _where(base: Base) -> str:
    return torch.cuda.get_device_name(base.device) if base.device.type == "cuda" else f"this process ({base.device})"


def _bytes(tensors: Any) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def _size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _free(out: Path) -> int:
    """Bytes free where the run will be."""
    there = next(folder for folder in (out.resolve(), *out.resolve().parents) if folder.exists())
    return shutil.disk_usage(there).free


def _size(size: float) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def _duration(seconds: float) -> str:
    minutes, hours = int(seconds // 60) % 60, int(seconds // 3600)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {int(seconds) % 60} s"
