"""Who else is told what RUN/metrics.csv says: TensorBoard, W&B, MLflow, through Lightning's loggers.

A line in `REPORTERS` is all that another one needs.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from controlnet.errors import UserError
from controlnet.images import decode
from controlnet.training.config import TrainConfig
from controlnet.training.record import Record

SAMPLES = "samples"


@dataclass(frozen=True)
class Reporter:
    """One of them: the package that must be installed, how its logger is opened, and how that shows a picture."""

    package: str
    open: Callable[[TrainConfig, Path, int], Logger]
    """Of the config, the folder for its files, and the step that the run goes on from."""
    show: Callable[[Any, Path, int], None]
    """By the logger, a picture at a step."""


def open_loggers(config: TrainConfig, start: int) -> list[tuple[Reporter, Logger]]:
    """Those that --report-to wants. UserError if one is asked for by name and not installed."""
    folder = config.logging_dir or config.out / "logs"
    opened = []
    for name in _wanted(config.report_to):
        logger = REPORTERS[name].open(config, folder, start)
        logger.log_hyperparams(config.to_json())
        opened.append((REPORTERS[name], logger))
    return opened


def _wanted(report_to: str) -> list[str]:
    installed = [name for name, reporter in REPORTERS.items() if find_spec(reporter.package)]
    match report_to:
        case "csv":
            return []
        case "auto":
            return [name for name in installed if name == "tensorboard"]
        case "all":
            return installed
        case name if name in installed:
            return [name]
    raise UserError(
        f"--report-to {report_to}: {REPORTERS[report_to].package} is not installed; "
        f"`pip install {REPORTERS[report_to].package}`, or choose among: {', '.join(['csv', *installed])}"
    )


class Report(Callback):
    """Sends on each new row of the record, and the pictures of each validation. Comes after those that write them."""

    def __init__(self, record: Record, folder: Path, loggers: list[tuple[Reporter, Logger]]) -> None:
        self.record, self.folder, self.loggers = record, folder, loggers
        self.sent = len(record.rows)

    def on_train_start(self, trainer: Trainer, module: Any) -> None:
        self._send()

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, index: int) -> None:
        self._send()

    def on_train_end(self, trainer: Trainer, module: Any) -> None:
        for _, logger in self.loggers:
            logger.finalize("success")

    def _send(self) -> None:
        new, self.sent = self.record.rows[self.sent :], len(self.record.rows)
        for row in new:
            step = int(row["step"])
            figures = {name: float(value) for name, value in row.items() if value and name != "step"}
            picture = self.folder / SAMPLES / f"step-{step:06d}.png"
            for reporter, logger in self.loggers:
                logger.log_metrics(figures, step)
                if row["hint_gain"] and picture.is_file():
                    reporter.show(logger, picture, step)


def _tensorboard(config: TrainConfig, folder: Path, start: int) -> Logger:
    """What a run that was killed has written after its last checkpoint is left out."""
    return TensorBoardLogger(folder, name="", version="", default_hp_metric=False, purge_step=start + 1)


def _wandb(config: TrainConfig, folder: Path, start: int) -> Logger:
    """The same run again goes on in the same run there."""
    folder.mkdir(parents=True, exist_ok=True)
    name = config.out.resolve()
    identity = hashlib.sha256(str(name).encode()).hexdigest()[:16]
    return WandbLogger(
        project=config.tracker_project_name, name=name.name, id=identity, resume="allow", save_dir=folder
    )


def _mlflow(config: TrainConfig, folder: Path, start: int) -> Logger:
    """To the server that MLFLOW_TRACKING_URI names, else into the folder."""
    return MLFlowLogger(config.tracker_project_name, run_name=config.out.resolve().name, save_dir=str(folder))


def _show_in_tensorboard(logger: TensorBoardLogger, picture: Path, step: int) -> None:
    logger.experiment.add_image(SAMPLES, np.asarray(decode(picture)), step, dataformats="HWC")


def _show_in_wandb(logger: WandbLogger, picture: Path, step: int) -> None:
    logger.log_image(SAMPLES, [str(picture)], step)


def _show_in_mlflow(logger: MLFlowLogger, picture: Path, step: int) -> None:
    logger.experiment.log_artifact(logger.run_id, str(picture), SAMPLES)


REPORTERS: dict[str, Reporter] = {
    "tensorboard": Reporter("tensorboard", _tensorboard, _show_in_tensorboard),
    "wandb": Reporter("wandb", _wandb, _show_in_wandb),
    "mlflow": Reporter("mlflow", _mlflow, _show_in_mlflow),
}
