"""Where a run begins or goes on, and whether it is the same run that is asked for."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from controlnet.atomic import write_atomically
from controlnet.base import Base
from controlnet.errors import UserError
from controlnet.training.cache import CACHE, Dataset, fingerprint
from controlnet.training.checkpoint import checkpoints, go_back_to, last_good, sweep
from controlnet.training.config import FREE, TrainConfig, check_same_run
from controlnet.training.environment import environment
from controlnet.training.ranks import Ranks


@dataclass(frozen=True)
class Start:
    """Where a run begins or goes on."""

    step: int
    checkpoint: Path | None
    content: str
    """The data set's fingerprint."""

    @classmethod
    def of(cls, found: list[tuple[int, Path]], content: str) -> "Start":
        step, checkpoint = found[0] if found else (0, None)
        return cls(step, checkpoint, content)


def identity(config: TrainConfig, base: Base, start: Start) -> dict[str, str]:
    """Hashes of what a run is trained on: the base, the data, and the options that change what is learned."""
    options = {name: value for name, value in config.to_json().items() if name not in FREE}
    told = json.dumps({**options, "pairs_per_step": config.pairs_per_step}, sort_keys=True)
    config_hash = hashlib.sha256(told.encode()).hexdigest()
    return {"base_hash": base.hash(), "data_fingerprint": start.content, "config_hash": config_hash}


def begin(config: TrainConfig, base: Base, dataset: Dataset, ranks: Ranks, console: Console) -> Start:
    """Where the run goes on. The first process compares what is asked with RUN/config.json and records it there."""
    path = config.out / "config.json"
    if not ranks.is_first:  # the first has looked at it all
        if not path.exists():
            raise UserError(
                f"{path} is not there, but the first process wrote it; all machines must see the same --out"
            )
        recorded = json.loads(path.read_text(encoding="utf-8"))
        return Start.of(checkpoints(config.out)[-1:], recorded["data_fingerprint"])
    content = fingerprint(dataset)
    now = {**config.to_json(), "pairs_per_step": config.pairs_per_step, "data_pairs": len(dataset)}
    now |= {"base_hash": base.hash(), "data_fingerprint": content}
    if path.exists():
        _tell_changes(path, now, console)
    elif config.out.exists() and any(each.name != CACHE for each in config.out.iterdir()):  # another run's may be there
        raise UserError(f"{config.out} has files but no config.json, so it is no run; give --out a new folder")
    sweep(config.out)
    found = _checkpoint(config, console)
    text = json.dumps({**now, **environment(base.device, base.dtype)}, indent=2)
    write_atomically(path, lambda temporary: temporary.write_text(text + "\n", encoding="utf-8"))
    return Start.of(found, content)


def _tell_changes(path: Path, now: dict[str, object], console: Console) -> None:
    for change in check_same_run(path, now):
        console.print(f"goes on with {change}", style="yellow", markup=False)


def _checkpoint(config: TrainConfig, console: Console) -> list[tuple[int, Path]]:
    """The checkpoint to go on from, if there is one."""
    if config.resume_from_checkpoint != "latest":
        return [go_back_to(config.out, config.resume_from_checkpoint)]
    last = last_good(config.out, lambda told: console.print(told, style="yellow", markup=False))
    return [last] if last else []
