"""What happens around the steps of a training: progress, validation, checkpoints, signals."""

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from torch import Tensor

from controlnet.checkpoints.control_file import NAME_IN_RUN, ControlMetadata, save_control
from controlnet.errors import UserError
from controlnet.evaluation.convergence import newly_converged
from controlnet.evaluation.curve import draw_curve
from controlnet.training.checkpoint import checkpoint_path, prune
from controlnet.training.module import ControlNetModule
from controlnet.training.record import Record
from controlnet.training.validation import HeldOut

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


class ShowProgress(Callback):
    """A bar with loss, images/s and time left; the same figures in the record. UserError if the loss is not finite."""

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
        loss = torch.stack(self.losses).mean().item()
        now = self._clock()
        speed = len(self.losses) * self.batch_size / (now - self.since)
        if not math.isfinite(loss):
            raise UserError(
                f"the loss is {loss} near step {step}; try a lower --learning-rate or --dtype float32 in a new --out"
            )
        self.record.add(step, loss=loss, images_per_second=speed)
        self.bar.update(self.task, completed=step, loss=f"{loss:.4f}", speed=f"{speed:.1f}")
        self.losses, self.since = [], now

    def _clock(self) -> float:
        return time.perf_counter() - self.pauses.seconds

    def on_train_end(self, trainer: Trainer, module: Any) -> None:
        self.bar.stop()

    def on_exception(self, trainer: Trainer, module: Any, exception: BaseException) -> None:
        self.bar.stop()


class Validate(Callback):
    """Every `every` steps, and before the first: held-out figures, pictures, the curve, the news of convergence."""

    def __init__(
        self, held_out: HeldOut, record: Record, every: int, folder: Path, console: Console, pauses: Pauses
    ) -> None:
        self.held_out, self.record, self.every = held_out, record, every
        self.folder, self.console, self.pauses = folder, console, pauses

    def on_train_start(self, trainer: Trainer, module: Any) -> None:
        if trainer.global_step == 0:
            self._validate(trainer, module)

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, index: int) -> None:
        if trainer.global_step % self.every == 0 or trainer.global_step == trainer.max_steps:
            self._validate(trainer, module)

    def _validate(self, trainer: Trainer, module: ControlNetModule) -> None:
        step = trainer.global_step
        picture = self.folder / "samples" / f"step-{step:06d}.png"
        with self.pauses.pause():
            measured = self.held_out.validate(module, step, picture, trainer.precision_plugin.val_step_context())
        self.record.add(step, held_out_loss=measured.loss, hint_gain=measured.hint_gain, fidelity=measured.fidelity)
        draw_curve(self.folder / "curve.png", self.record.losses, self.record.history)
        fidelity = "" if measured.fidelity is None else f", fidelity {measured.fidelity:.2f}"
        self.console.print(
            f"step {step}: held-out loss {measured.loss:.4f}, hint gain {measured.hint_gain:.3f}{fidelity}"
        )
        if convergence := newly_converged(self.record.history):
            self.console.print(str(convergence), style="bold green")


class SaveCheckpoints(Callback):
    """Every `every` steps and at the end: a whole checkpoint, the control alone; only then is the oldest removed."""

    def __init__(self, folder: Path, every: int, metadata: ControlMetadata, pauses: Pauses) -> None:
        self.folder, self.every, self.metadata, self.pauses = folder, every, metadata, pauses

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, index: int) -> None:
        if trainer.global_step % self.every == 0 or trainer.global_step == trainer.max_steps:
            self.save(trainer, module)

    def save(self, trainer: Trainer, module: ControlNetModule) -> None:
        path = checkpoint_path(self.folder, trainer.global_step)
        with self.pauses.pause():
            if not path.exists():
                trainer.save_checkpoint(path)
            save_control(self.folder / NAME_IN_RUN, module.control, self.metadata)
            prune(self.folder)


class StopOnSignal(Callback):
    """On Ctrl-C or SIGTERM: finish the step, save, stop. A second Ctrl-C stops at once. Comes last of the callbacks."""

    def __init__(self, checkpoints: SaveCheckpoints) -> None:
        self.checkpoints = checkpoints
        self.received: signal.Signals | None = None
        self._handlers: dict[signal.Signals, Any] = {}

    def on_train_start(self, trainer: Trainer, module: Any) -> None:
        if threading.current_thread() is threading.main_thread():  # others may not set handlers
            self._handlers = {number: signal.signal(number, self._receive) for number in SIGNALS}

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received == number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, index: int) -> None:
        if self.received:
            self.checkpoints.save(trainer, module)
            trainer.should_stop = True

    def on_train_end(self, trainer: Trainer, module: Any) -> None:
        self._restore()

    def on_exception(self, trainer: Trainer, module: Any, exception: BaseException) -> None:
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}
