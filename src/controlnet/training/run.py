"""A whole training: `train(config)`. The same call again continues where the run in `config.out` stopped.

controlnet train --base embedded --data circles --out run
"""

import json
import logging
import signal
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from lightning.pytorch import Callback, Trainer
from rich.console import Console

from controlnet import __version__
from controlnet.atomic import write_atomically
from controlnet.base import Base, open_base
from controlnet.checkpoints.control_file import NAME_IN_RUN, ControlMetadata
from controlnet.data.pairs import Pairs
from controlnet.devices import fastest_dtype
from controlnet.errors import UserError
from controlnet.evaluation.convergence import Convergence, Validation, find_convergence
from controlnet.evaluation.fidelity import fit_ring
from controlnet.training.cache import Dataset, Encoded, encode, fingerprint, held_out_count
from controlnet.training.callbacks import Pauses, SaveCheckpoints, ShowProgress, StopOnSignal, Validate
from controlnet.training.checkpoint import SafetensorsIO, checkpoints
from controlnet.training.config import TrainConfig, check_same_run
from controlnet.training.module import ControlNetModule, Steps
from controlnet.training.record import Record
from controlnet.training.validation import HeldOut

PRECISION: Mapping[torch.dtype, str] = {
    torch.float32: "32-true",
    torch.bfloat16: "bf16-mixed",
    torch.float16: "16-mixed",
}
LEARNING_RATE = 1e-5  # the original's, for Stable Diffusion
NARROW_LEARNING_RATE = 1e-3  # for bases narrower than Stable Diffusion's 320 channels
LOOKED_AT = 32  # hints that decide whether all are rings


@dataclass(frozen=True)
class Trained:
    """What a training came to; `control` is the file to generate with."""

    control: Path
    step: int
    history: list[Validation]
    convergence: Convergence | None


def train(config: TrainConfig, dataset: Dataset | None = None, base: Base | None = None) -> Trained:
    """Train, or continue, the run in `config.out`; `dataset` and `base`, if given, stand for those of the config.

    UserError for what cannot be done as asked. On Ctrl-C the step is finished and saved, then KeyboardInterrupt; on
    SIGTERM likewise, then SystemExit(143).
    """
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    dataset = Pairs(config.data) if dataset is None else dataset
    if base is None:
        base = open_base(device=config.device, dtype=fastest_dtype(config.dtype, config.device), **config.how_to_open())
    if base.unet.config.in_channels != base.vae.config.latent_channels:
        raise UserError(f"base {base.source} was made for inpainting; controls are trained on plain bases")
    content = fingerprint(dataset)
    _begin(config, base, content)

    last = checkpoints(config.out)[-1:]
    start = last[0][0] if last else 0
    record = Record(config.out / "metrics.csv", until=start)
    if start >= config.max_train_steps:
        console.print(f"{config.out} is finished: {start} steps; a larger --max-train-steps continues it")
    else:
        pairs, held_out = _encoded(config, base, dataset, content, console)
        _fit(config, base, pairs, held_out, record, start, last[0][1] if last else None, console)
    history = record.history
    step = max(start, config.max_train_steps)
    return Trained(config.out / NAME_IN_RUN, step, history, find_convergence(history))


def _begin(config: TrainConfig, base: Base, content: str) -> None:
    """Record what is asked in RUN/config.json, or compare it with what is recorded there."""
    now = {**config.to_json(), "base_hash": base.hash(), "data_fingerprint": content}
    path = config.out / "config.json"
    if path.exists():
        check_same_run(path, now)
    elif config.out.exists() and any(config.out.iterdir()):
        raise UserError(f"{config.out} has files but no config.json, so it is no run; give --out a new folder")
    text = json.dumps({**now, "versions": {"controlnet": __version__, "torch": torch.__version__}}, indent=2)
    write_atomically(path, lambda temporary: temporary.write_text(text + "\n", encoding="utf-8"))


def _encoded(
    config: TrainConfig, base: Base, dataset: Dataset, content: str, console: Console
) -> tuple[Encoded, Encoded]:
    """The pairs to train on and the held-out ones."""
    folder = config.out / "cache"
    pairs = encode(base, dataset, folder, content, console)
    if config.validation_data is not None:
        others = Pairs(config.validation_data)
        return pairs, encode(base, others, folder, fingerprint(others), console)
    if len(pairs) < 2:
        raise UserError(f"{len(pairs)} usable pair; expected 2 or more, one of them to be held out")
    return pairs.split(held_out_count(len(pairs)))


def _fit(
    config: TrainConfig,
    base: Base,
    pairs: Encoded,
    held_out: Encoded,
    record: Record,
    start: int,
    checkpoint: Path | None,
    console: Console,
) -> None:
    """Train from step `start`, whose state is in `checkpoint`, to the end or to a signal."""
    condition = _condition(held_out) if config.condition == "auto" else config.condition
    module = ControlNetModule(
        base,
        _learning_rate(config, base),
        pairs.hint_channels,
        config.only_mid_control,
        config.seed,
        config.lr_scheduler,
    )
    told = {"seed": config.seed, "learning_rate": module.learning_rate, "train_batch_size": config.train_batch_size}
    polarity = "light on dark" if condition == "circle" else "unknown"
    metadata = ControlMetadata.of(base, module.control, condition, polarity=polarity, training=told)
    timesteps = len(base.schedule.alphas_cumprod)
    steps = Steps(pairs, config.seed, config.train_batch_size, timesteps, config.proportion_empty_prompts, start)
    judged = HeldOut(held_out, base, condition, config.seed, config.train_batch_size, config.num_validation_images)

    pauses = Pauses()
    progress = ShowProgress(record, config.train_batch_size, console, pauses)
    validate = Validate(judged, record, config.validation_steps, config.out, progress.bar.console, pauses)
    saves = SaveCheckpoints(config.out, config.checkpointing_steps, metadata, pauses)
    stop = StopOnSignal(saves)
    with _quiet(), _keyboard_interrupt_as_such():
        trainer = _trainer(config, base, [progress, validate, saves, stop])
        trainer.fit(module, steps, ckpt_path=checkpoint)
    if stop.received:
        console.print(f"stopped at step {trainer.global_step}; run the same command to continue", style="yellow")
        raise KeyboardInterrupt if stop.received == signal.SIGINT else SystemExit(128 + stop.received)


def _trainer(config: TrainConfig, base: Base, callbacks: list[Callback]) -> Trainer:
    """Lightning's, with its own files, bars and tables off: the callbacks do that."""
    return Trainer(
        accelerator="gpu" if base.device.type == "cuda" else base.device.type,
        devices=1,
        precision=PRECISION[base.dtype],  # type: ignore[arg-type]  # one of Lightning's literals
        max_steps=config.max_train_steps,
        callbacks=callbacks,
        plugins=[SafetensorsIO()],
        default_root_dir=config.out,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )


def _learning_rate(config: TrainConfig, base: Base) -> float:
    narrow = base.unet.config.block_out_channels[0] < 320
    return config.learning_rate or (NARROW_LEARNING_RATE if narrow else LEARNING_RATE)


def _condition(pairs: Encoded) -> str:
    """ "circle" if nearly all hints are rings."""
    rings = [fit_ring(pairs.hint_of(row)) is not None for row in range(min(LOOKED_AT, len(pairs)))]
    return "circle" if sum(rings) >= 0.9 * len(rings) else "unknown"


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Lightning's tips and its advice on loaders that ours isn't."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            yield
    finally:
        logger.setLevel(level)


@contextmanager
def _keyboard_interrupt_as_such() -> Iterator[None]:
    """Lightning turns Ctrl-C into exit code 1 and ignores the next; give the caller what happened."""
    try:
        yield
    except SystemExit as ended:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if isinstance(ended.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from ended
        raise
