"""Several processes that train a tiny base together: started, waited for, found."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil

from controlnet.training.checkpoint import checkpoints


def command(base: Path, circles: Path, out: Path, steps: int, *more: str) -> list[str]:
    told = {"base": base, "data": circles, "out": out, "max-train-steps": steps, "train-batch-size": 2}
    told |= {
        "device": "cpu",
        "dtype": "float32",
        "learning-rate": 1e-3,
        "lr-scheduler": "cosine",
        "num-validation-images": 1,
    }
    told |= {"validation-steps": 100000, "checkpointing-steps": 1, "checkpoints-total-limit": 100, "report-to": "csv"}
    return ["train", *(word for name, value in told.items() for word in (f"--{name}", str(value))), *more]


def start(kind: str, arguments: list[str]) -> "subprocess.Popen[str]":
    """Two processes, started by torchrun or by the command itself."""
    by_itself = [sys.executable, "-m", "controlnet", *arguments, "--devices", "2"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", port]
    torchrun += ["-m", "controlnet", *arguments]
    return subprocess.Popen(
        {"itself": by_itself, "torchrun": torchrun}[kind],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


def wait_for_step(run: Path, step: int, process: "subprocess.Popen[str]") -> None:
    while not any(saved >= step for saved, _ in checkpoints(run)):
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)


def children(process: "subprocess.Popen[str]") -> list[int]:
    """Processes of the group that train, but for its first."""
    return [
        child.pid for child in psutil.Process(process.pid).children(recursive=True) if "train" in child.cmdline()[-60:]
    ]


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
