"""Who else is told what a run measures, and what is published of it."""

from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from controlnet.errors import UserError
from controlnet.images import encode_png
from controlnet.training.config import TrainConfig
from controlnet.training.loggers import Report, open_loggers
from controlnet.training.publishing import check_hub
from controlnet.training.record import Record


def config(out: Path, **others: object) -> TrainConfig:
    return TrainConfig(data="d", out=out, **others)  # type: ignore[arg-type]


def test_tensorboard_is_told_each_row_once_and_shown_the_pictures(tmp_path: Path) -> None:
    import numpy as np

    record = Record(tmp_path / "metrics.csv", until=0)
    report = Report(record, tmp_path, open_loggers(config(tmp_path), start=0))
    encode_png(np.zeros((8, 8, 3), np.uint8), tmp_path / "samples" / "step-000002.png")
    record.add(1, loss=0.5)
    report.on_train_batch_end(None, None, None, None, 0)  # type: ignore[arg-type]
    record.add(2, loss=0.25, held_out_loss=0.75, hint_gain=0.1)
    report.on_train_batch_end(None, None, None, None, 1)  # type: ignore[arg-type]
    report.on_train_end(None, None)  # type: ignore[arg-type]
    told = EventAccumulator(str(tmp_path / "logs")).Reload()
    assert [(each.step, each.value) for each in told.Scalars("loss")] == [(1, 0.5), (2, 0.25)]
    assert [(each.step, each.value) for each in told.Scalars("held_out_loss")] == [(2, 0.75)]
    assert [each.step for each in told.Images("samples")] == [2]


def test_nobody_else_is_told_if_csv_is_enough(tmp_path: Path) -> None:
    assert open_loggers(config(tmp_path, report_to="csv"), start=0) == []


def test_who_is_not_installed_is_told_with_what_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controlnet.training.loggers.find_spec", lambda name: name == "tensorboard" or None)
    with pytest.raises(UserError, match="wandb is not installed; .* choose among: csv, tensorboard"):
        open_loggers(config(tmp_path, report_to="wandb"), start=0)


def test_publishing_offline_or_unknown_is_an_error_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(UserError, match="nobody is logged in; run `hf auth login`"):
        check_hub()
