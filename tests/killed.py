"""Kills a training, again and again, and looks whether it goes on: python killed.py boundaries|times BASE DATA FOLDER.

Each training is forked from this process, which has imported everything. Prints how many were killed; ends with an
assertion's traceback if one of them lost more than an interval, could not go on, or ended otherwise than undisturbed.
"""

import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import torch
from safetensors.torch import save

from controlnet.atomic import TEMPORARY
from controlnet.base import Base, open_base
from controlnet.checkpoints import control_file
from controlnet.training import checkpoint as checkpointing
from controlnet.training.callbacks import KeepState, SaveCheckpoints
from controlnet.training.checkpoint import checkpoints, last_good
from controlnet.training.config import TrainConfig
from tiny_runs import differences, make_config, train_until, unvalidated

CHUNKS = 30  # writes of a file
RESUMED = 10  # of so many runs that were killed while saving one is trained on
KILLS = 100  # at any time
INTERVAL = 2  # steps between checkpoints
LAST = 8  # step


def main(kills: str, base_folder: str, data: str, folder: str) -> None:
    torch.set_num_threads(1)  # a forked process has no other threads
    base = open_base(base_folder, device="cpu")
    base.hash()
    print({"boundaries": kill_at_boundaries, "times": kill_at_times}[kills](base, Path(data), Path(folder)))


def kill_at_boundaries(base: Base, data: Path, folder: Path) -> int:
    """The save of step 4 dies at each of its calls in turn, in a run that keeps two checkpoints."""
    undisturbed, run = folder / "undisturbed", folder / "run"
    assert forked(lambda: go_on(5, config_of(data, undisturbed, 1), base)) == 0
    original, killed = SaveCheckpoints.save, list[int]()

    def save(self: SaveCheckpoints, trainer: Any, module: Any) -> None:
        if trainer.global_step == 4 and not killed:  # it is called again when the run stops
            killed.append(kill_each(lambda: original(self, trainer, module), run))
        original(self, trainer, module)

    SaveCheckpoints.save = save  # type: ignore[method-assign]
    go_on(4, config_of(data, run, 1), base)
    SaveCheckpoints.save = original  # type: ignore[method-assign]
    for copy in folder.glob("run-*"):
        assert forked(lambda copy=copy: go_on(5, config_of(data, copy, 1), base)) == 0, copy
        assert not differences(undisturbed, copy, 5), copy
        assert not list(copy.rglob(TEMPORARY)), copy
    return killed[0]


def kill_each(save: Callable[[], None], run: Path) -> int:
    """Fork a process for each call of `save`, which dies before it. How many calls there are; the run is as before."""
    before = run.with_name("before")
    shutil.copytree(run, before)
    for number in count(1):

        def die(number: int = number) -> None:
            die_at(number)
            save()

        survived = forked(die) == 0
        found = last_good(run, print)
        assert found, f"killed at call {number}: {checkpoints(run)}"
        assert found[0] == 4 if survived else found[0] in (3, 4), f"killed at call {number}: {found}"
        if number % RESUMED == 0 and not survived:
            shutil.copytree(run, run.with_name(f"run-{number}"))
        for part in ("checkpoints", "control.safetensors"):
            restore(before / part, run / part)
        if survived:
            return number - 1
    raise AssertionError


def restore(saved: Path, place: Path) -> None:
    if saved.is_dir():
        shutil.rmtree(place)
        shutil.copytree(saved, place)
    else:
        shutil.copy(saved, place)


def kill_at_times(base: Base, data: Path, folder: Path) -> int:
    """Kills at any time of a run, from its first file on; whenever one comes to its end, another begins."""
    undisturbed, run = folder / "undisturbed", folder / "run"
    start = time.perf_counter()
    assert forked(lambda: go_on(LAST, config_of(data, undisturbed, INTERVAL), base)) == 0
    longest = time.perf_counter() - start
    config, reached, kills, ends = config_of(data, run, INTERVAL), folder / "reached", 0, 0
    chance = random.Random(0)
    while kills < KILLS:
        reached.write_text("0")
        if forked(lambda: go_on(LAST, config, base, reached), chance.uniform(0, longest)) == 0:
            assert not differences(undisturbed, run, LAST), f"after {kills} kills"
            shutil.rmtree(run)
            ends += 1
            continue
        kills += 1
        found = last_good(run, print)
        kept = found[0] if found else 0
        assert kept >= int(reached.read_text() or 0) - INTERVAL, f"kill {kills}: {kept}, {reached.read_text()}"
    assert ends
    return kills


def config_of(data: Path, run: Path, interval: int) -> TrainConfig:
    return make_config(data, run, LAST + 1, checkpointing_steps=interval, train_batch_size=1)


def go_on(step: int, config: TrainConfig, base: Base, reached: Path | None = None) -> None:
    """Train until this step; note in a file which ones were done."""
    if reached is not None:
        KeepState.on_train_batch_end = lambda self, trainer, *_: reached.write_text(str(trainer.global_step))  # type: ignore[method-assign]
    found = last_good(config.out, print)
    if found and found[0] >= step:
        return  # killed between its last save and its end
    with unvalidated():
        train_until(step, config, base)


def forked(work: Callable[[], None], kill_after: float | None = None) -> int:
    """The exit status of a process that does this work, negative if it was killed: after so many seconds if told."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, -signal.SIGKILL), code
    return code


def die_at(number: int) -> None:
    """From now on kill this process just before its n-th write, fsync, rename or removal."""
    calls = count(1)

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*arguments: Any, **named: Any) -> Any:
            if next(calls) == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **named)

        return counting

    write = counted(os.write)

    def save_in_chunks(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
        # safetensors writes in Rust, where nothing can be counted: here the same bytes, by calls of Python
        content = save(tensors, metadata)
        size = -(-len(content) // CHUNKS)
        with open(path, "wb", buffering=0) as file:
            for start in range(0, len(content), size):
                write(file.fileno(), content[start : start + size])

    checkpointing.save_file = control_file.save_file = save_in_chunks
    for name in ("fsync", "rename", "replace", "unlink"):
        setattr(os, name, counted(getattr(os, name)))


if __name__ == "__main__":
    main(*sys.argv[1:])
