"""What happens around the steps of a training: progress, validation, checkpoints, signals."""

import math
import os
import random
import signal
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import psutil
import torch
from lightning.pytorch import Callback, Trainer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from torch import Tensor

from controlnet.checkpoints.control_file import NAME_IN_RUN, ControlMetadata, save_control
from controlnet.training.checkpoint import checkpoint_path, checkpoints, prune
from controlnet.training.module import ControlNetModule
from controlnet.training.ranks import Ranks
from controlnet.training.record import Record
from controlnet.training.validation import HeldOut, publish

LOGGED_EVERY = 10  # steps: reading the loss makes a GPU wait
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Pauses:
    """Seconds spent on other things than training, so that images/s is that of training."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @contextmanager
    def pause(self) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - start


def most_memory(device: torch.device) -> int:
    """Bytes: the most that was in use, by torch on a GPU, else by this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if os.name == "nt":
        return int(psutil.Process().memory_info().peak_wset)
    import resource  # which Windows does not have

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


class ShowProgress(Callback):
    """A bar with loss, images/s and time left; the same figures in the record."""

    def __init__(self, record: Record, batch_size: int, console: Console, pauses: Pauses) -> None:
        self.record, self.batch_size, self.pauses = record, batch_size, pauses
        figures = TextColumn("loss {task.fields[loss]}  {task.fields[speed]} images/s")
        self.bar = Progress(
            TextColumn("training"), BarColumn(), MofNCompleteColumn(), figures, TimeRemainingColumn(), console=console
        )
        self.task = TaskID(0)
        self.losses: list[Tensor] = []
        self.since = 0.0

    def on_train_start(self, trainer: Trainer, module: Any) -> None:
        self.task = self.bar.add_task("", total=trainer.max_steps, completed=trainer.global_step, loss="-", speed="-")
        self.bar.start()
        self.since = self._clock()

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, index: int) -> None:
        self.losses.append(outputs["loss"].detach())
        step = trainer.global_step
        if step % LOGGED_EVERY and step != trainer.max_steps:
            return
        losses = torch.stack(self.losses)
        loss = losses[losses.isfinite()].mean().item()  # of the steps that were taken
        now = self._clock()
        speed = len(self.losses) * self.batch_size / (now - self.since)
        measured = {"loss": None if math.isnan(loss) else loss, "images_per_second": speed}
        self.record.add(step, **measured, peak_memory=most_memory(module.device))
        self.bar.update(self.task, completed=step, loss=f"{loss:.4f}", speed=f"{speed:.1f}")
        self.losses, self.since = [], now

    def _clock(self) -> float:
        return time.perf_counter() - self.pauses.seconds

    def on_train_end(self, trainer: Trainer, module: Any) -> None:
        self.bar.stop()

    def on_exception(self, trainer: Trainer, module: Any, exception: BaseException) -> None:
        self.bar.stop()


class AtValidations(Callback, ABC):
    """Every `every` steps, before the first and after the last."""

    def __init__(self, every: int) -> None:
        self.every = every

    def on_train_start(self, trainer: Trainer, module: Any) -> None:
        if trainer.global_step == 0:
            self._validate(trainer, module)

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, index: int) -> None:
        if trainer.global_step % self.every == 0 or trainer.global_step == trainer.max_steps:
            self._validate(trainer, module)

    @abstractmethod
    def _validate(self, trainer: Trainer, module: ControlNetModule) -> None: ...


class Validate(AtValidations):
    """Held-out figures, pictures, the curve, the news of convergence."""

    def __init__(
        self, held_out: HeldOut, record: Record, every: int, folder: Path, console: Console, pauses: Pauses
    ) -> None:
        super().__init__(every)
        self.held_out, self.record = held_out, record
        self.folder, self.console, self.pauses = folder, console, pauses

    def _validate(self, trainer: Trainer, module: ControlNetModule) -> None:
        step = trainer.global_step
        picture = self.folder / "samples" / f"step-{step:06d}.png"
        with self.pauses.pause():
            measured = self.held_out.validate(module, step, picture, trainer.precision_plugin.val_step_context())
        publish(self.folder, self.record, measured, self.console, self.held_out.news())


class LendShares(AtValidations):
    """In the processes that do not validate: give the first their shares of the control when it does."""

    def _validate(self, trainer: Trainer, module: ControlNetModule) -> None:
        with module.as_saved():
            pass


class SaveCheckpoints(Callback):
    """Every `every` steps and at the end: the control alone, a whole checkpoint; only then is the oldest removed.

    In this order: whoever is killed between the two has a control that is newer than the run, never an older one. Many
    processes come here together; the first of them writes.
    """

    def __init__(
        self, folder: Path, every: int, kept: int, metadata: ControlMetadata, pauses: Pauses, ranks: Ranks
    ) -> None:
        self.folder, self.every, self.kept = folder, every, kept
        self.metadata, self.pauses, self.ranks = metadata, pauses, ranks
        self.saved = -1  # step

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, index: int) -> None:
        if trainer.global_step % self.every == 0 or trainer.global_step == trainer.max_steps:
            self.save(trainer, module)

    def save(self, trainer: Trainer, module: ControlNetModule) -> None:
        """Once for a step, however often it is called."""
        if self.saved == trainer.global_step:
            return
        self.saved = trainer.global_step
        with self.pauses.pause():
            with module.as_saved() as saved:
                if self.ranks.is_first:
                    save_control(self.folder / NAME_IN_RUN, saved.control, self.metadata)
            trainer.save_checkpoint(checkpoint_path(self.folder, self.saved))
            if self.ranks.is_first:
                prune(self.folder, self.kept)

    def told(self) -> str:
        """Where the last checkpoint is."""
        last = checkpoints(self.folder)[-1:]
        return f"the last checkpoint is that of step {last[0][0]}" if last else "there is no checkpoint yet"


class KeepState(Callback):
    """What a checkpoint holds beside Lightning's state: the position, random state, and what the run is trained on.

    Nothing in a step is drawn from the random state, it is kept for what users add to a training.
    """

    def __init__(self, global_batch: int, pairs: int, identity: dict[str, str]) -> None:
        """`pairs` in an epoch; `identity` as `start.identity` has it."""
        self.global_batch, self.pairs, self.identity = global_batch, pairs, identity

    def on_save_checkpoint(self, trainer: Trainer, module: Any, checkpoint: dict[str, Any]) -> None:
        epoch, place = divmod(trainer.global_step * self.global_batch, self.pairs)
        position = {"step": trainer.global_step, "epoch": epoch, "place_in_epoch": place}
        checkpoint["run"] = {"position": position, "identity": self.identity, "random": random_state()}

    def on_load_checkpoint(self, trainer: Trainer, module: Any, checkpoint: dict[str, Any]) -> None:
        restore_random_state(checkpoint["run"]["random"])


class StopOnSignal(Callback):
    """On Ctrl-C or SIGTERM: finish the step, save, stop. A second Ctrl-C stops at once. Comes last of the callbacks.

    It suffices that one of many processes is told: they agree after each step.
    """

    def __init__(self, saves: SaveCheckpoints, ranks: Ranks) -> None:
        self.saves, self.ranks = saves, ranks
        self.received = 0
        self._handlers: dict[signal.Signals, Any] = {}

    def on_train_start(self, trainer: Trainer, module: Any) -> None:
        if threading.current_thread() is threading.main_thread():  # others may not set handlers
            self._handlers = {number: signal.signal(number, self._receive) for number in SIGNALS}

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received == number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, index: int) -> None:
        if received := self.ranks.most(self.received):
            self.received = received
            self.saves.save(trainer, module)
            trainer.should_stop = True

    def on_train_end(self, trainer: Trainer, module: Any) -> None:
        self._restore()

    def on_exception(self, trainer: Trainer, module: Any, exception: BaseException) -> None:
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}


def random_state() -> dict[str, Any]:
    """Of Python, NumPy and torch, as values that a checkpoint can hold."""
    version, words, gauss = random.getstate()
    name, keys, place, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": [version, list(words), gauss],
        "numpy": [name, torch.from_numpy(np.asarray(keys, np.int64)), int(place), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
        "cuda": [torch.cuda.get_rng_state()] if torch.cuda.is_initialized() else [],  # type: ignore[no-untyped-call]
    }


def restore_random_state(state: dict[str, Any]) -> None:
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"][0])
