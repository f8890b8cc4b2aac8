"""Two processes that share the trained weights out, for real (gloo): what they learn is what one learns."""

import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from controlnet.base import Base, open_base
from controlnet.errors import UserError
from controlnet.training.checkpoint import checkpoint_path
from controlnet.training.config import TrainConfig
from controlnet.training.module import ControlNetModule
from controlnet.training.run import train
from controlnet.training.sharding import shard
from tiny_processes import children, command, is_alive, start, wait_for_step
from tiny_runs import distance, make_config, seen_samples, unvalidated

FSDP = ["--strategy", "fsdp"]
# what is trained, averaged and clipped is computed otherwise where weights are shares
CASES: dict[str, dict[str, object]] = {
    "plain": {},
    "averaged-and-clipped": {"ema_decay": 0.9, "max_grad_norm": 0.001},
    "unlocked": {"sd_unlocked": True, "learning_rate_unlocked": 1e-3, "gradient_checkpointing": True},
}
CLOSE = 1e-3  # relative; measured: 1e-6 to 1e-4 after one to four steps


def words(options: dict[str, object]) -> list[str]:
    told = (
        [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])] for name, value in options.items()
    )
    return [word for each in told for word in each]


def finish(process: "subprocess.Popen[str]", code: int = 0) -> str:
    """What it said on standard error."""
    _, errors = process.communicate(timeout=600)
    assert process.returncode == code, errors
    return errors


def weights_apart(one: Path, other: Path) -> float:
    """How far two controls are apart, relative."""
    expected, found = load_file(one), load_file(other)
    assert {name: x.shape for name, x in expected.items()} == {name: x.shape for name, x in found.items()}
    expected_n, found_n = (torch.cat([state[name].flatten() for name in expected]) for state in (expected, found))
    return float((found_n - expected_n).norm() / expected_n.norm())


def same_content(one: Path, other: Path, step: int) -> bool:
    """Whether two checkpoints hold tensors of the same names, shapes and kinds."""
    told = [
        {name: (x.shape, x.dtype) for name, x in load_file(checkpoint_path(run, step)).items()} for run in (one, other)
    ]
    return told[0] == told[1]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_two_with_shares_train_as_one_does_and_each_goes_on_where_the_other_was(
    base: Base, base_folder: Path, circles: Path, tmp_path: Path, group: list["subprocess.Popen[str]"], case: str
) -> None:
    one, two, from_one = tmp_path / "one", tmp_path / "two", tmp_path / "from-one"
    options = {"lr_scheduler": "cosine", "checkpointing_steps": 1, "checkpoints_total_limit": 100, **CASES[case]}
    options |= {"train_batch_size": 2, "gradient_accumulation_steps": 4, "base": str(base_folder), "dtype": "float32"}
    shared = [*words(CASES[case]), *FSDP, "--gradient-accumulation-steps", "2"]
    with unvalidated(), seen_samples() as seen:
        train(make_config(circles, one, 4, **options), base=base)
    shutil.copytree(one, from_one)

    group.append(start("torchrun", command(base_folder, circles, two, 4, *shared)))
    assert "training" in finish(group[0])
    assert all(distance(one, two, step) < CLOSE for step in (1, 2, 3, 4))
    assert same_content(one, two, 4)
    assert weights_apart(one / "control.safetensors", two / "control.safetensors") < CLOSE

    with unvalidated(), seen_samples() as seen_then:
        train(make_config(circles, two, 4, **options, resume_from_checkpoint="2"), base=base)
    assert seen_then == seen[2:]
    assert distance(one, two, 4) < CLOSE

    group.append(start("itself", command(base_folder, circles, from_one, 4, *shared, "--resume-from-checkpoint", "2")))
    finish(group[1])
    assert distance(one, from_one, 4) < CLOSE
    assert weights_apart(one / "control.safetensors", from_one / "control.safetensors") < CLOSE


@pytest.mark.slow
def test_those_who_share_stop_together_when_told_and_end_when_one_is_killed(
    base_folder: Path, circles: Path, tmp_path: Path, group: list["subprocess.Popen[str]"]
) -> None:
    arguments = command(base_folder, circles, tmp_path, 10_000, *FSDP)
    group.append(start("itself", arguments))
    wait_for_step(tmp_path, 2, group[0])
    group[0].send_signal(signal.SIGTERM)
    assert "stopped at step" in finish(group[0], 143)
    group.append(start("itself", arguments))
    wait_for_step(tmp_path, 5, group[1])
    [other] = children(group[1])
    os.kill(other, signal.SIGKILL)
    _, errors = group[1].communicate(timeout=60)
    assert group[1].returncode != 0
    assert "run the same command again" in errors.lower()
    assert not is_alive(other)


def hold_shares(rank: int, port: int, folder: str) -> None:
    """In one of two processes: what it holds of a module before and after, and what all hold together."""
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    module = ControlNetModule(open_base(folder, device="cpu"), 1e-3, ema_decay=0.9)
    before = {name: parameter.detach().clone() for name, parameter in module.trained().items()}
    shard(module, "cpu")
    assert module.average is not None
    for held in (module.trained(), module.average.means()):
        numbers = sum(x.to_local().numel() for x in held.values())  # type: ignore[attr-defined]
        assert abs(numbers / sum(x.numel() for x in before.values()) - 0.5) < 0.01
    with module.as_saved() as saved:
        if rank == 0:
            assert all(torch.equal(parameter, before[name]) for name, parameter in saved.control.named_parameters())
        else:
            assert {parameter.device.type for parameter in saved.control.parameters()} == {"meta"}
    dist.destroy_process_group()


def test_each_of_two_holds_half_and_the_first_gets_the_whole_to_save_it(base_folder: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(hold_shares, (port, str(base_folder)), nprocs=2)  # raises what fails in either


@pytest.mark.parametrize("option", ["auto_micro_batch", "use_8bit_adam", "compile"])
def test_what_shares_cannot_do_is_refused_with_the_reason(tmp_path: Path, option: str) -> None:
    with pytest.raises(UserError, match=f"--strategy fsdp and --{option.replace('_', '-')}: .+; expected one of them"):
        TrainConfig(data=tmp_path, out=tmp_path, strategy="fsdp", **{option: True})
