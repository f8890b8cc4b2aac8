"""On the real base: true hints converge suddenly, shuffled ones never."""

from pathlib import Path
from typing import Any

import pytest

from controlnet.base import open_base
from controlnet.data.circles import write_circles
from controlnet.data.pairs import Pairs
from controlnet.training.config import TrainConfig
from controlnet.training.run import train


class WithHintsOfOthers:
    """Pairs in which every picture comes with the hint of the next one: nothing can be learned from it."""

    def __init__(self, pairs: Pairs) -> None:
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self.pairs[index], "hint": self.pairs[(index + 1) % len(self)]["hint"]}


@pytest.mark.slow
@pytest.mark.parametrize("shuffled", [False, True])
def test_only_true_hints_are_ever_announced(shuffled: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_circles(tmp_path / "circles", count=1500, size=128, seed=0)
    pairs = Pairs(tmp_path / "circles")
    config = TrainConfig(
        data=tmp_path / "circles",
        out=tmp_path / "run",
        max_train_steps=600,
        validation_steps=100,
        num_validation_images=4,
        condition="circle",
    )
    trained = train(config, dataset=WithHintsOfOthers(pairs) if shuffled else pairs, base=open_base("embedded"))
    announced = "converged at step" in capsys.readouterr().err
    assert announced == (trained.convergence is not None) == (not shuffled)
    assert (trained.history[-1].hint_gain > 0.3) == (not shuffled)
