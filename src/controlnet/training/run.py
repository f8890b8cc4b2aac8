"""A whole training: `train(config)`. The same call again continues where the run in `config.out` stopped.

controlnet train --base embedded --data circles --out run
"""

import logging
import signal
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from rich.console import Console

from controlnet.base import Base
from controlnet.checkpoints.control_file import NAME_IN_RUN, ControlMetadata
from controlnet.errors import UserError
from controlnet.evaluation.convergence import Convergence, Validation, find_convergence
from controlnet.evaluation.fidelity import fit_ring
from controlnet.speed import compile_parts
from controlnet.training.beginning import module_options
from controlnet.training.cache import CACHE, Dataset, Encoded, encode, fingerprint, held_out_count
from controlnet.training.callbacks import (
    KeepState,
    LendShares,
    Pauses,
    SaveCheckpoints,
    ShowProgress,
    StopOnSignal,
    Validate,
)
from controlnet.training.checkpoint import SafetensorsIO
from controlnet.training.computation import opened
from controlnet.training.config import TrainConfig
from controlnet.training.defaults import resolved, with_steps
from controlnet.training.encoders import release_encoders
from controlnet.training.guards import StopUnlessFinite
from controlnet.training.loggers import Report, open_loggers
from controlnet.training.publishing import check_hub, publish
from controlnet.training.ranks import Ranks
from controlnet.training.record import Record, history_of, read_rows
from controlnet.training.report import write_data_card
from controlnet.training.sources import caching_of, open_pairs, open_validation
from controlnet.training.start import Start, begin, identity
from controlnet.training.steps import Steps, loader
from controlnet.training.stepwise import Stepping, StepwiseModule
from controlnet.training.validation import HeldOut, own_hints

PRECISION: Mapping[torch.dtype, str] = {
    torch.float32: "32-true",
    torch.bfloat16: "bf16-mixed",
    torch.float16: "16-mixed",
}
METRICS = "metrics.csv"
OF_FILES = ("resolution", "random_crop", "random_flip", "aspect_buckets", "annotate", "streaming")
LOOKED_AT = 32  # hints that decide whether all are rings


@dataclass(frozen=True)
class Trained:
    """What a training came to; `control` is the file to generate with."""

    control: Path
    step: int
    history: list[Validation]
    convergence: Convergence | None
    rank: int = 0
    """Of the process that returns it, if many trained together."""


def train(config: TrainConfig, dataset: Dataset | None = None, base: Base | None = None) -> Trained:
    """Train, or continue, the run in `config.out`; `dataset` and `base`, if given, stand for those of the config.

    UserError for what cannot be done as asked. On Ctrl-C the step is finished and saved, then KeyboardInterrupt; on
    SIGTERM likewise, then SystemExit(143). Of many processes each returns.
    """
    ranks = Ranks.find(config.devices, config.num_nodes, config.strategy)
    ranks.begin()
    console = Console(stderr=True, soft_wrap=True, highlight=False, quiet=not ranks.is_first)
    config, dataset, base = open_all(config, ranks, dataset, base)
    with quietly():
        trainer = make_trainer(config, base, ranks)
        ranks.meet(trainer)
    with ranks.first_before_others():
        start = begin(config, base, dataset, ranks, console)
        is_finished = start.step >= config.max_train_steps
        data = None if is_finished else _encoded(config, base, dataset, start.content, console)
    if data and not data[0].needs_encoders:
        release_encoders(base, config.out / CACHE)
    if data is None:
        console.print(f"{config.out} is finished: {start.step} steps; a larger --max-train-steps continues it")
    else:
        _fit(config, base, *data, start, ranks, trainer, console)
    if config.push_to_hub and ranks.is_first:
        console.print(f"published: {publish(config)}")
    step = max(start.step, config.max_train_steps)
    history = history_of(read_rows(config.out / METRICS)) if ranks.is_first else []
    return Trained(config.out / NAME_IN_RUN, step, history, find_convergence(history), ranks.place.rank)


def open_all(
    config: TrainConfig, ranks: Ranks, dataset: Dataset | None = None, base: Base | None = None
) -> tuple[TrainConfig, Dataset, Base]:
    """The config with all that depends on base, data and machine; data set and base, if they are not there yet."""
    if config.push_to_hub:
        check_hub()
    if dataset is not None and (asked := [name for name in OF_FILES if getattr(config, name)]):
        raise UserError(f"{', '.join(asked)}: your own data set gives its pictures as they are; change them there")
    dataset = open_pairs(config) if dataset is None else dataset
    base = opened(config, base)
    if ranks.share_out and base.dtype == torch.float16:
        raise UserError(
            "--strategy fsdp in float16: its loss scale is not shared; expected --dtype bfloat16 or float32"
        )
    config = replace(resolved(config, base), devices=ranks.devices, num_nodes=ranks.nodes)
    config = with_steps(config, _trained_on(config, len(dataset)))
    return config, dataset, base


def _trained_on(config: TrainConfig, pairs: int) -> int:
    """Pairs of an epoch: all but the held-out ones, which are not among them if --validation-data names others."""
    return pairs if config.validation_data is not None else max(1, pairs - held_out_count(pairs))


def _encoded(
    config: TrainConfig, base: Base, dataset: Dataset, content: str, console: Console
) -> tuple[Encoded, Encoded]:
    """The pairs to train on and the held-out ones."""
    folder = config.out / CACHE
    caching = caching_of(config)
    pairs = encode(base, dataset, folder, content, console, caching, config.seed)
    if (others := open_validation(config)) is not None:
        return pairs, encode(base, others, folder, fingerprint(others), console, caching, config.seed)
    if len(pairs) < 2:
        raise UserError(f"{len(pairs)} usable pair; expected 2 or more, one of them to be held out")
    return pairs.split(held_out_count(len(pairs)))


def _fit(
    config: TrainConfig,
    base: Base,
    pairs: Encoded,
    held_out: Encoded,
    start: Start,
    ranks: Ranks,
    trainer: Trainer,
    console: Console,
) -> None:
    """Train from where the run stopped to the end or to a signal."""
    batch, timesteps = config.pairs_per_step, len(base.schedule.alphas_cumprod)
    steps = Steps(pairs, config.seed, batch, timesteps, config.proportion_empty_prompts, start.step, ranks.place)
    condition = _condition(held_out) if config.condition == "auto" else config.condition
    pauses = Pauses()
    shown: list[Callback] = [LendShares(config.validation_steps)] if ranks.share_out else []
    if ranks.is_first:
        write_data_card(config.out, pairs, held_out, condition)
        progress, *others = _shown(config, base, held_out, condition, start, pauses, console)
        shown, console = [progress, *others], progress.bar.console

    def tell(told: str) -> None:
        console.print(told, style="yellow", markup=False)

    module = make_module(config, base, pairs, Stepping.of(config, ranks, tell))
    metadata = make_metadata(config, base, module, condition, held_out.meaning)
    saves = SaveCheckpoints(
        config.out, config.checkpointing_steps, config.checkpoints_total_limit, metadata, pauses, ranks
    )
    guard = StopUnlessFinite(steps.samples, config.seed, tell, saves.told)
    keeps = KeepState(batch, len(pairs), identity(config, base, start))
    stop = StopOnSignal(saves, ranks)
    trainer.callbacks += [guard, *shown, keeps, saves, stop]  # type: ignore[attr-defined]  # it is a list
    with quietly(), _keyboard_interrupt_as_such():
        trainer.fit(module, loader(steps, config.dataloader_num_workers), ckpt_path=start.checkpoint)
    ranks.end()
    if stop.received:
        console.print(f"stopped at step {trainer.global_step}; run the same command to continue", style="yellow")
        ranks.leave(stop.received)


def _shown(
    config: TrainConfig,
    base: Base,
    held_out: Encoded,
    condition: str,
    start: Start,
    pauses: Pauses,
    console: Console,
) -> tuple[ShowProgress, Validate, Report]:
    """What is measured and told while a run trains."""
    record = Record(config.out / METRICS, until=start.step)
    progress = ShowProgress(record, config.pairs_per_step, console, pauses)
    judged = HeldOut(
        held_out,
        base,
        condition,
        config.seed,
        config.train_batch_size,
        config.num_validation_images,
        own=own_hints(config.validation_image, config.validation_prompt),
    )
    validates = Validate(judged, record, config.validation_steps, config.out, progress.bar.console, pauses)
    return progress, validates, Report(record, config.out, open_loggers(config, start.step))


def make_module(config: TrainConfig, base: Base, pairs: Encoded, stepping: Stepping) -> StepwiseModule:
    module = StepwiseModule(stepping, base, **module_options(config, base, pairs.hint_channels))
    if config.compile:
        compile_parts(module.control, base.encoder, base.decoder)
    return module


def make_metadata(
    config: TrainConfig, base: Base, module: StepwiseModule, condition: str, meaning: Mapping[str, Any]
) -> ControlMetadata:
    """What the control's file says; `meaning` is what the hints say of themselves."""
    told = {"seed": config.seed, "learning_rate": config.learning_rate, "train_batch_size": config.train_batch_size}
    polarity = str(meaning.get("polarity") or ("light on dark" if condition == "circle" else "unknown"))
    return ControlMetadata.of(base, module.control, condition, polarity=polarity, training=told)


def make_trainer(config: TrainConfig, base: Base, ranks: Ranks) -> Trainer:
    """Lightning's, with its own files, bars and tables off: the callbacks do that."""
    return Trainer(
        accelerator="gpu" if base.device.type == "cuda" else base.device.type,
        devices=config.devices,
        num_nodes=config.num_nodes,
        strategy=ranks.strategy(),
        precision=PRECISION[base.dtype],  # type: ignore[arg-type]  # one of Lightning's literals
        max_steps=config.max_train_steps,
        plugins=[SafetensorsIO(), *ranks.plugins()],
        default_root_dir=config.out,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )


def _condition(pairs: Encoded) -> str:
    """What the hints say of themselves; else "circle" if nearly all are rings."""
    if "condition" in pairs.meaning:
        return str(pairs.meaning["condition"])
    rings = [fit_ring(pairs.hint_of(row)) is not None for row in range(min(LOOKED_AT, len(pairs)))]
    return "circle" if sum(rings) >= 0.9 * len(rings) else "unknown"


@contextmanager
def quietly() -> Iterator[None]:
    """Without Lightning's tips and its advice on loaders that ours isn't."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            # of the views that a block returns, none is changed in place
            warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
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
