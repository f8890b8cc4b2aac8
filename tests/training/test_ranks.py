"""Two processes on one machine, for real (gloo): they train as one does, and never hang."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from controlnet.base import Base
from controlnet.errors import UserError
from controlnet.training.checkpoint import checkpoints
from controlnet.training.ranks import Ranks, _buckets
from controlnet.training.run import train
from controlnet.training.steps import Place, Steps
from tiny_processes import children, command, is_alive, start, wait_for_step
from tiny_runs import differences, distance, make_config, seen_samples, train_until, unvalidated

OPTIONS = {"train_batch_size": 2, "lr_scheduler": "cosine"}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["itself", "torchrun"])
def test_two_processes_train_as_one_does_and_one_goes_on_with_the_order_of_two(
    base: Base, base_folder: Path, circles: Path, tmp_path: Path, group: list["subprocess.Popen[str]"], kind: str
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    with unvalidated(), seen_samples() as seen:
        train_until(4, make_config(circles, one, 5, gradient_accumulation_steps=2, checkpointing_steps=1,
                                   checkpoints_total_limit=100, **OPTIONS), base)  # fmt: skip
    group.append(start(kind, command(base_folder, circles, two, 5)))
    wait_for_step(two, 2, group[0])
    group[0].send_signal(signal.SIGTERM)
    output, errors = group[0].communicate(timeout=600)
    assert group[0].returncode == 143 or kind == "torchrun", errors
    assert "stopped at step" in errors
    assert output.count("\n") <= 1
    step = checkpoints(two)[-1][0]
    for each in range(1, min(step, 4) + 1):
        assert distance(one, two, each) < 1e-3
    same = {"base": str(base_folder), "dtype": "float32", **OPTIONS}
    config = make_config(circles, two, 5, gradient_accumulation_steps=2, resume_from_checkpoint="2", **same)
    with unvalidated(), seen_samples() as seen_by_one:
        train_until(4, config, base)
    assert seen_by_one == seen[2:4]
    assert distance(one, two, 4) < 1e-3


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build of 24 pictures in four tars."""
    from build import made
    from controlnet.build.recipe import make_recipe
    from controlnet.build.run import build

    folder = tmp_path_factory.mktemp("shards")
    told = {
        "source": {"kind": "files", "path": str(made.folder(folder / "pictures", 24))},
        "shard_size": 7,
        "stage": [{"kind": "annotate", "condition": "canny", "options": {"detect_resolution": 64}}],
        "sink": {"kind": "webdataset"},
    }
    build(make_recipe(told, folder / "recipe.toml"), folder / "out")
    return folder / "out"


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_two_processes_train_from_shards_in_the_order_of_one_and_a_resume_is_exact(
    base: Base, base_folder: Path, shards: Path, tmp_path: Path, group: list["subprocess.Popen[str]"], workers: int
) -> None:
    """Past the end of an epoch of 18 pairs, by tars that are read at any place, also by processes of the loader."""
    one, two, whole, last = tmp_path / "one", tmp_path / "two", tmp_path / "whole", 9
    with unvalidated():
        train_until(last - 1, make_config(shards, one, last, gradient_accumulation_steps=2, checkpointing_steps=1,
                                          checkpoints_total_limit=100, **OPTIONS), base)  # fmt: skip
    more = ["--dataloader-num-workers", str(workers)]
    for out, is_stopped in ((two, True), (whole, False), (two, False)):
        group.append(start("itself", command(base_folder, shards, out, last, *more)))
        if is_stopped:
            wait_for_step(two, 3, group[-1])
            group[-1].send_signal(signal.SIGTERM)
        _, errors = group[-1].communicate(timeout=600)
        assert group[-1].returncode == (143 if is_stopped else 0), errors
        assert ("stopped at step" in errors) == is_stopped
    assert len(list((shards / "shards").glob("*.tar"))) == 4
    for step in range(1, last):
        assert distance(one, whole, step) < 1e-3, "the same pairs and noise at each step"
    for step in (4, last):  # bit for bit; but for the random state that a process begins with: no step draws from it
        differing = [name for name in differences(whole, two, step) if not name.startswith("/run/random/")]
        assert not differing


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["itself", "torchrun"])
@pytest.mark.parametrize("which", [0, -1])
def test_a_killed_process_ends_the_job_which_goes_on_when_started_again(
    base_folder: Path, circles: Path, tmp_path: Path, group: list["subprocess.Popen[str]"], kind: str, which: int
) -> None:
    arguments = command(base_folder, circles, tmp_path, 10_000)
    group.append(start(kind, arguments))
    wait_for_step(tmp_path, 2, group[0])
    trained = [group[0].pid, *children(group[0])] if kind == "itself" else children(group[0])
    os.kill(trained[which], signal.SIGKILL)
    _, errors = group[0].communicate(timeout=600)
    assert group[0].returncode != 0, errors
    reached = checkpoints(tmp_path)[-1][0]
    deadline = time.monotonic() + 30
    while any(is_alive(pid) for pid in trained):
        assert time.monotonic() < deadline, "a process was left behind"
        time.sleep(0.2)
    group.append(start(kind, arguments))
    wait_for_step(tmp_path, reached + 1, group[1])


def test_processes_share_out_each_step_without_gap_or_overlap(base: Base, circles: Path, tmp_path: Path) -> None:
    with unvalidated():
        train_until(1, make_config(circles, tmp_path, 2), base)
    from rich.console import Console

    from controlnet.data.pairs import Pairs
    from controlnet.training.cache import encode, fingerprint

    data = Pairs(circles)
    pairs = encode(base, data, tmp_path / "cache", fingerprint(data), Console(quiet=True))
    alone = Steps(pairs, 0, 6, 1000, 0.5, 0)[3][1]
    parts = [Steps(pairs, 0, 6, 1000, 0.5, 0, Place(rank, 3))[3][1] for rank in range(3)]
    for name in ("timestep_b", "noise_bchw", "empties_prompt_b"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(alone, name))


def test_another_global_batch_is_refused_with_both_sizes(base: Base, circles: Path, tmp_path: Path) -> None:
    with unvalidated():
        train_until(1, make_config(circles, tmp_path, 3, gradient_accumulation_steps=2, **OPTIONS), base)
        with pytest.raises(UserError, match="pairs_per_step: 4 in the run, 2 now"):
            train(make_config(circles, tmp_path, 3, **OPTIONS), base=base)


def test_a_process_knows_its_place_by_what_torchrun_and_slurm_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Ranks.find(1, 1).place == Place(0, 1)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    told = {"RANK": 5, "WORLD_SIZE": 8, "LOCAL_RANK": 1, "LOCAL_WORLD_SIZE": 4, "GROUP_RANK": 1}
    told |= {"TORCHELASTIC_RUN_ID": "run"}
    with monkeypatch.context() as torchrun:
        for name, value in told.items():
            torchrun.setenv(name, str(value))
        found = Ranks.find(1, 1)
        assert (found.place, found.devices, found.nodes, found.local_rank) == (Place(5, 8), 4, 2, 1)
        with pytest.raises(UserError, match="4 processes were started on each of 2 machines"):
            Ranks.find(3, 1)
    told = {"SLURM_NTASKS": 6, "SLURM_NTASKS_PER_NODE": 3, "SLURM_PROCID": 4, "SLURM_LOCALID": 1, "SLURM_NNODES": 2}
    told |= {"SLURM_JOB_NAME": "train"}
    with monkeypatch.context() as slurm:
        for name, value in told.items():
            slurm.setenv(name, str(value))
        found = Ranks.find(1, 1)
        assert (found.place, found.devices, found.nodes, found.local_rank) == (Place(4, 6), 3, 2, 1)


def test_gradients_travel_in_buckets_that_hold_all_of_them_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controlnet.training.ranks.BUCKET", 40)
    tensors = [torch.zeros(size) for size in (4, 4, 4, 30, 1)]
    assert [[len(tensor) for tensor in bucket] for bucket in _buckets(tensors)] == [[4, 4], [4], [30], [1]]
