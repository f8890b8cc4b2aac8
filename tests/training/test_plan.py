from pathlib import Path

import pytest

from controlnet.cli import main
from controlnet.errors import UserError
from controlnet.training.plan import Course, plan, propose
from controlnet.training.record import Record


def run(folder: Path, *gains: float) -> Path:
    record = Record(folder / "metrics.csv", until=0)
    for number, gain in enumerate(gains):
        record.add(1000 * number, held_out_loss=0.2, hint_gain=gain)
    return folder


def test_the_originals_example_comes_out_as_its_text_says() -> None:
    """Convergence at 3k, money for 90k: either 3k and 87k steps, or 30 times accumulation for 3k steps."""
    courses = {course.name: course for course in propose(3_000, 90_000, 4).courses}
    assert courses["without accumulation"] == Course("without accumulation", 1, before=3_000, after=87_000)
    assert courses["all before it"] == Course("all before it", 30, before=3_000, after=0)
    assert courses["proposed"] == Course("proposed", 16, before=3_000, after=2_625)


@pytest.mark.parametrize("convergence", [1, 70, 3_000, 9_999])
@pytest.mark.parametrize("budget", [10_000, 90_000, 3_000_000])
@pytest.mark.parametrize("batch_size", [1, 3, 4, 16, 64, 100])
def test_what_is_proposed_fits_the_budget_and_lies_between_64_and_128_where_it_can(
    convergence: int, budget: int, batch_size: int
) -> None:
    made = propose(convergence, budget, batch_size)
    course = made.proposed
    assert (course.before + course.after) * course.accumulation <= budget
    assert course.before == convergence
    assert course.accumulation == 1 or course.accumulation * batch_size <= 128
    if course.accumulation * batch_size < 64:
        assert (course.accumulation + 1) * convergence > 0.75 * budget, "a larger step was affordable"
    if course.accumulation > 1:
        assert course.before * course.accumulation <= 0.75 * budget, "nothing is left for after the convergence"
    for other in made.courses:
        assert other.accumulation == 1 or other.accumulation * batch_size <= 256


def test_the_budget_is_halved_where_halves_make_good_steps() -> None:
    course = propose(3_000, 144_000, 4).proposed
    assert course.accumulation * 4 == 96
    assert course.before == course.after


def test_beyond_256_pairs_a_step_the_rest_of_the_budget_becomes_steps() -> None:
    courses = propose(1_000, 1_000_000, 4).courses
    assert courses[1].accumulation == 64
    assert courses[1].after == 1_000_000 // 64 - 1_000
    assert propose(1_000, 1_000_000, 300).proposed.accumulation == 1


def test_a_budget_that_ends_before_the_convergence_is_refused_with_one_that_does_not() -> None:
    with pytest.raises(UserError, match="4,000"):
        propose(3_000, 2_999, 4)


def test_a_run_that_converged_gives_its_step_and_its_batch(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"train_batch_size": 4}')
    made = plan(run(tmp_path, 0.0, 0.01, 0.01, 0.3, 0.5), budget=90_000)
    assert (made.convergence, made.batch_size) == (3_000, 4)
    assert "16x accumulation, 64 pairs a step: 3,000 steps until it (48,000 batches), then 2,625" in str(made)
    assert str(made).endswith("--gradient-accumulation-steps 16 --max-train-steps 5625")


def test_the_command_prints_the_plan_and_trains_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = run(tmp_path / "run", 0.0, 0.01, 0.01, 0.3, 0.5)
    options = {"--data": tmp_path, "--out": out, "--max-train-steps": 90_000, "--train-batch-size": 4}
    assert main.run(["train", "--plan", *(str(word) for pair in options.items() for word in pair)]) == 0
    assert "all before it: 30x accumulation" in capsys.readouterr().out
    assert [path.name for path in out.iterdir()] == ["metrics.csv"]


def test_a_run_that_did_not_converge_and_a_folder_that_is_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no sudden convergence in .*, 2000 steps so far"):
        plan(run(tmp_path, 0.0, 0.01, 0.01), 90_000, 4)
    with pytest.raises(UserError, match="it is no run"):
        plan(tmp_path / "nothing", 90_000, 4)
