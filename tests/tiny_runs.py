"""Runs of a tiny base on small circles: told what to do, stopped where wished, compared bit for bit."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from controlnet.base import Base
from controlnet.training.callbacks import StopOnSignal, Validate
from controlnet.training.checkpoint import checkpoint_path
from controlnet.training.config import TrainConfig
from controlnet.training.run import train
from controlnet.training.stepwise import StepwiseModule


def make_config(circles: Path, out: Path, steps: int, **others: object) -> TrainConfig:
    values = {
        "validation_steps": 100,
        "checkpointing_steps": 100,
        "train_batch_size": 4,
        "num_validation_images": 1,
        "learning_rate": 1e-3,
        "report_to": "csv",
    }
    return TrainConfig(data=circles, out=out, max_train_steps=steps, device="cpu", **{**values, **others})  # type: ignore[arg-type]


@contextmanager
def unvalidated() -> Iterator[None]:
    """Without validations, which change nothing in what is learned and take most of a tiny run's time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Validate, "_validate", lambda self, trainer, module: None)
        yield


@contextmanager
def seen_samples() -> Iterator[list[tuple[int, ...]]]:
    """What each step's training sees: its draws tell its samples, as each is drawn by seed, epoch and sample."""
    seen: list[tuple[int, ...]] = []
    with pytest.MonkeyPatch.context() as patch:
        original = StepwiseModule.training_step

        def watch(self, share, index):  # type: ignore[no-untyped-def]
            seen.append(tuple(share[1].noise_bchw[:, 0, 0, 0].view(torch.int32).tolist()))
            return original(self, share, index)

        patch.setattr(StepwiseModule, "training_step", watch)
        yield seen


@contextmanager
def at_step(step: int, event: Callable[[], None]) -> Iterator[None]:
    """Let something happen once, at the end of a step, before it is looked whether a signal came."""
    with pytest.MonkeyPatch.context() as patch:
        original = StopOnSignal.on_train_batch_end

        def hook(self, trainer, module, outputs, batch, index):  # type: ignore[no-untyped-def]
            if trainer.global_step == step:
                event()
            original(self, trainer, module, outputs, batch, index)

        patch.setattr(StopOnSignal, "on_train_batch_end", hook)
        yield


def train_until(step: int, config: TrainConfig, base: Base) -> None:
    """Train, or go on, and stop after this step as on SIGTERM."""
    with at_step(step, lambda: os.kill(os.getpid(), signal.SIGTERM)), pytest.raises(SystemExit) as ended:
        train(config, base=base)
    assert ended.value.code == 143


def differences(one: Path, other: Path, step: int) -> list[str]:
    """Names of the tensors that differ between the checkpoints of two runs: weights, optimizer, random state."""
    expected, found = (load_file(checkpoint_path(run, step)) for run in (one, other))
    assert expected.keys() == found.keys()
    assert any("exp_avg" in name for name in expected)
    return [name for name in expected if not torch.equal(expected[name], found[name])]


def distance(one: Path, other: Path, step: int) -> float:
    """How far the gradients' means (Adam's first moments) of two runs are apart: the norm of what differs, relative."""
    expected, found = (load_file(checkpoint_path(run, step)) for run in (one, other))
    names = [name for name in expected if name.endswith("/exp_avg")]
    assert names
    expected_n, found_n = (torch.cat([state[name].flatten() for name in names]) for state in (expected, found))
    return float((found_n - expected_n).norm() / expected_n.norm())
