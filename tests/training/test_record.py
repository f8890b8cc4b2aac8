from pathlib import Path

import pytest

from controlnet.errors import UserError
from controlnet.evaluation.convergence import Validation
from controlnet.training.record import Record


def test_rows_after_the_checkpoint_are_measured_anew_and_a_torn_last_line_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    record = Record(path, until=0)
    record.add(0, held_out_loss=0.5, hint_gain=0.0, fidelity=0.2)
    record.add(10, loss=0.4, images_per_second=30.0)
    record.add(20, loss=0.3, images_per_second=31.0)
    record.add(20, held_out_loss=0.4, hint_gain=0.25)
    with path.open("a") as file:
        file.write("30,0.2")
    for _ in range(2):
        again = Record(path, until=20)
        assert again.losses == [(10, 0.4), (20, 0.3)]
        assert [(v.step, v.loss, v.hint_gain, v.fidelity) for v in again.history] == [
            (0, 0.5, 0, 0.2),
            (20, 0.4, 0.25, None),
        ]
    assert Record(path, until=10).losses == [(10, 0.4)]
    assert [validation.step for validation in Record(path, until=20).history] == [0]


def test_the_file_is_a_table_that_others_can_read(tmp_path: Path) -> None:
    record = Record(tmp_path / "metrics.csv", until=0)
    record.add(10, loss=0.25, images_per_second=30.5)
    assert record.path.read_text().splitlines() == [
        "step,loss,images_per_second,peak_memory,held_out_loss,base_loss,hint_gain,fidelity,text_accuracy",
        "10,0.25,30.5,,,,,,",
    ]


def test_a_disk_that_takes_no_more_is_an_error_for_people(tmp_path: Path) -> None:
    record = Record(tmp_path / "metrics.csv", until=0)
    record.path.unlink()
    record.path.mkdir()
    with pytest.raises(UserError, match=r"cannot write .*metrics\.csv"):
        record.add(10, loss=0.25)


def test_what_a_validation_measured_comes_back_from_the_file(tmp_path: Path) -> None:
    record = Record(tmp_path / "metrics.csv", until=0)
    measured = [Validation(0, 0.5, 0.0, None, 0.5, 0.9), Validation(10, 0.4, 0.25, 0.75, 0.5, 0.85)]
    for each in measured:
        record.add_validation(each)
    assert Record(record.path, until=10).history == measured


def test_a_file_of_an_older_version_goes_on_with_the_columns_of_today(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("step,loss,images_per_second,held_out_loss,hint_gain,fidelity\n10,0.25,30,,,\n20,,,0.4,0.1,0.3\n")
    record = Record(path, until=20)
    record.add(30, loss=0.2)
    assert Record(path, until=30).losses == [(10, 0.25), (30, 0.2)]
    assert Record(path, until=30).history == [Validation(20, 0.4, 0.1, 0.3)]
