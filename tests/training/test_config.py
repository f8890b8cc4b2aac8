import json
import subprocess
import sys
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from controlnet.errors import UserError
from controlnet.training.config import TrainConfig, check_same_run
from controlnet.training.module import LR_SCHEDULERS


def test_every_wrong_value_is_told_at_once() -> None:
    with pytest.raises(UserError) as caught:
        TrainConfig(
            data=Path("d"),
            out=Path("o"),
            max_train_steps=0,
            train_batch_size=-1,
            learning_rate=2.0,
            proportion_empty_prompts=1.5,
            seed=-1,
        )
    message = str(caught.value)
    for option in ("max-train-steps", "train-batch-size", "learning-rate", "proportion-empty-prompts", "seed"):
        assert f"--{option} is" in message


def test_a_change_that_changes_what_is_learned_is_refused_and_named(tmp_path: Path) -> None:
    record = tmp_path / "config.json"
    before = TrainConfig(data=Path("d"), out=tmp_path, learning_rate=1e-4, seed=1)
    record.write_text(json.dumps({**before.to_json(), "data_fingerprint": "a"}))
    after = TrainConfig(data=Path("d"), out=tmp_path, learning_rate=2e-4, seed=1)
    with pytest.raises(UserError, match=r"learning_rate: 0\.0001 in the run, 0\.0002 now") as caught:
        check_same_run(record, {**after.to_json(), "data_fingerprint": "b"})
    assert "data_fingerprint: a in the run, b now" in str(caught.value)
    assert "seed" not in str(caught.value)


def test_a_run_may_go_on_for_more_steps_with_other_intervals(tmp_path: Path) -> None:
    record = tmp_path / "config.json"
    record.write_text(json.dumps(TrainConfig(data=Path("d"), out=tmp_path).to_json()))
    longer = TrainConfig(
        data=Path("d"), out=tmp_path, max_train_steps=9999, validation_steps=7, checkpointing_steps=9, device="cpu"
    )
    check_same_run(record, longer.to_json())


def test_the_config_imports_nothing_heavy() -> None:
    code = "import sys, controlnet.training.config; print(any(m in sys.modules for m in ('torch', 'numpy', 'rich')))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_every_offered_scheduler_is_there_and_ends_where_it_says() -> None:
    offered = get_args(get_type_hints(TrainConfig)["lr_scheduler"])
    assert set(offered) == set(LR_SCHEDULERS)
    assert [LR_SCHEDULERS[name](0.0) for name in offered] == [1.0, 1.0, 1.0]
    ends = {name: LR_SCHEDULERS[name](1.0) for name in offered}
    assert ends == pytest.approx({"constant": 1.0, "linear": 0.0, "cosine": 0.0})
    assert LR_SCHEDULERS["cosine"](0.5) == pytest.approx(0.5)
