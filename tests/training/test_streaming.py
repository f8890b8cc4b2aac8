import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image, Value
from rich.console import Console

from controlnet.base import Base
from controlnet.data.formats.records import Columns
from controlnet.data.formats.stream import Stream
from controlnet.data.pairs import Pairs
from controlnet.errors import UserError
from controlnet.training.cache import encode, fingerprint
from controlnet.training.config import TrainConfig
from controlnet.training.run import train
from controlnet.training.steps import Steps
from controlnet.training.streaming import Streamed

COLUMNS = Columns(streaming=True, length=24)
COUNT = 24


@pytest.fixture(scope="module")
def parquet(circles: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The circles as Parquet, in two files."""
    folder, pairs = tmp_path_factory.mktemp("parquet"), Pairs(circles)
    features = Features({"image": Image(), "conditioning_image": Image(), "text": Value("string")})
    for part, rows in enumerate((range(10), range(10, COUNT))):
        records = [pairs.records.record(row) for row in rows]
        assert all(record.hint for record in records)
        cells = [
            {
                "image": {"bytes": record.target.read(), "path": None},
                "conditioning_image": {"bytes": record.hint.read(), "path": None},  # type: ignore[union-attr]
                "text": record.prompt,
            }
            for record in records
        ]
        Dataset.from_list(cells, features=features).to_parquet(folder / f"train-{part}.parquet")
    return folder


@pytest.fixture
def streamed(base: Base, parquet: Path, tmp_path: Path) -> Streamed:
    pairs = Pairs(parquet, COLUMNS)
    made = encode(base, pairs, tmp_path, fingerprint(pairs), Console(stderr=True), seed=2)
    assert isinstance(made, Streamed)
    return made


def test_a_stream_gives_its_rows_in_order_and_from_any_place_again(parquet: Path, circles: Path) -> None:
    stream, expected = Stream(str(parquet), COLUMNS), Pairs(circles)
    for index in (0, 1, 2, 12, 13, 3, 23, 0):
        assert stream.prompt(index) == expected.prompt(index)
    assert pickle.loads(pickle.dumps(stream)).prompt(5) == expected.prompt(5)


def test_a_stream_of_unknown_length_asks_for_it_and_one_that_ends_early_says_so(parquet: Path) -> None:
    with pytest.raises(UserError, match="--max-train-samples"):
        Stream(str(parquet), Columns(streaming=True))
    with pytest.raises(UserError, match="ended before its row 25.*--max-train-samples 24"):
        Stream(str(parquet), Columns(streaming=True, length=30)).record(24)


def test_its_first_pairs_are_held_out_and_the_others_follow_as_they_come(
    streamed: Streamed, base: Base, circles: Path
) -> None:
    pairs, held_out = streamed.split(4)
    assert held_out.captions == [Pairs(circles).prompt(row) for row in range(4)]
    steps = Steps(pairs, seed=2, batch_size=5, timesteps=1000, emptied=0.0, start=3)
    assert steps.samples(3) == [19, 20, 21, 22, 23]
    assert steps.samples(4) == [4, 5, 6, 7, 8]
    (reading, _), expected = steps[3], Pairs(circles)
    batch = reading.on(base)
    mean, _ = base.encode_moments(torch.stack([resized(expected[row]["jpg"]) for row in range(19, 24)]))
    assert batch.mean_bchw.shape == mean.shape
    assert torch.allclose(batch.mean_bchw, mean, atol=0.05)


def resized(picture: np.ndarray) -> torch.Tensor:
    """64 pixels as 128: of no exact size of the base, which a stream does not know before."""
    tensor = torch.from_numpy(picture).permute(2, 0, 1)[None]
    return torch.nn.functional.interpolate(tensor, scale_factor=2, mode="bilinear")[0]


def test_a_pair_that_cannot_be_used_is_replaced_and_logged(
    streamed: Streamed, base: Base, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    original = Stream.record

    def broken(self: Stream, index: int):  # type: ignore[no-untyped-def]
        record = original(self, index)
        return (
            type(record)(record.label, type(record.target)("x", b"nothing"), record.hint, "") if index == 6 else record
        )

    monkeypatch.setattr(Stream, "record", broken)
    reading = streamed.read([5, 6, 7], torch.zeros(3, dtype=torch.bool))
    assert torch.equal(reading.hint_bhwc[0], reading.hint_bhwc[1])
    assert not torch.equal(reading.hint_bhwc[1], reading.hint_bhwc[2])
    assert "skipped" in caplog.text


def test_a_training_on_a_stream_that_stopped_equals_one_that_did_not(base: Base, parquet: Path, tmp_path: Path) -> None:
    def run(out: Path, steps: int) -> dict[str, torch.Tensor]:
        from safetensors.torch import load_file

        config = TrainConfig(
            data=parquet,
            streaming=True,
            max_train_samples=COUNT,
            out=out,
            max_train_steps=steps,
            train_batch_size=2,
            validation_steps=100,
            num_validation_images=1,
            device="cpu",
        )
        return load_file(train(config, base=base).control)

    whole = run(tmp_path / "whole", 3)
    run(tmp_path / "parted", 1)
    parted = run(tmp_path / "parted", 3)
    assert all(torch.equal(whole[name], parted[name]) for name in whole)
