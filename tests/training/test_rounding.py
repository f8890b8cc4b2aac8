"""Gradients that stay in bfloat16 are those that autocast gives in float32; those that are summed up do not stay so."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from controlnet.base import Base, open_base
from controlnet.training.checkpoint import checkpoint_path
from controlnet.training.rounding import with_rounded_weights
from controlnet.training.stepwise import StepwiseModule, norm_of
from tiny_runs import differences, make_config, train_until, unvalidated


def test_gradients_of_rounded_weights_are_autocasts_bit_for_bit() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.Flatten(), nn.Linear(8 * 16, 4))
    x, found = torch.randn(2, 3, 4, 4), []
    for is_rounded in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            called = with_rounded_weights(model, dict(model.named_parameters())) if is_rounded else model
            out = called(x)
        out.float().square().mean().backward()
        found.append((out, {name: each.grad for name, each in model.named_parameters()}))
    (autocast, gradients), (rounded, halves) = found
    assert torch.equal(autocast, rounded)
    dtypes = {name: each.dtype for name, each in halves.items() if each is not None}
    is_weight = {name: each.ndim > 1 for name, each in model.named_parameters()}
    assert dtypes == {name: torch.bfloat16 if it else torch.float32 for name, it in is_weight.items()}
    for name, gradient in gradients.items():
        half = halves[name]
        assert gradient is not None
        assert half is not None
        assert torch.equal(gradient, half.float())


@pytest.fixture(scope="module")
def rounding_base(base_folder: Path) -> Base:
    return open_base(str(base_folder), device="cpu", dtype="bfloat16")


@contextmanager
def seen_gradients() -> Iterator[list[set[torch.dtype]]]:
    """The precisions of the gradients of weights at each step."""
    seen: list[set[torch.dtype]] = []
    with pytest.MonkeyPatch.context() as patch:
        original = StepwiseModule._take

        def watch(self: StepwiseModule, optimizer: object, gradients: list[Tensor], loss: Tensor) -> Tensor:
            seen.append({each.dtype for each in gradients if each.ndim > 1})
            return original(self, optimizer, gradients, loss)

        patch.setattr(StepwiseModule, "_take", watch)
        yield seen


def test_a_run_that_rounds_learns_the_same_bit_for_bit(rounding_base: Base, circles: Path, tmp_path: Path) -> None:
    options = {"mixed_precision": "bf16", "max_grad_norm": 0.0}
    with unvalidated(), seen_gradients() as seen, pytest.MonkeyPatch.context() as patch:
        train_until(3, make_config(circles, tmp_path / "rounded", 4, **options), rounding_base)
        patch.setattr("controlnet.training.stepwise.can_round", lambda device: False)
        train_until(3, make_config(circles, tmp_path / "plain", 4, **options), rounding_base)
    assert seen == [{torch.bfloat16}] * 3 + [{torch.float32}] * 3
    assert not differences(tmp_path / "rounded", tmp_path / "plain", 3)


@pytest.mark.parametrize(
    "options",
    [
        {"gradient_accumulation_steps": 2, "train_batch_size": 2},
        {"gradient_checkpointing": True},
        {"use_8bit_adam": True},
    ],
)
def test_gradients_that_others_add_to_compute_again_or_take_are_float32(
    rounding_base: Base, circles: Path, tmp_path: Path, options: dict[str, object]
) -> None:
    with unvalidated(), seen_gradients() as seen:
        train_until(2, make_config(circles, tmp_path, 3, mixed_precision="bf16", **options), rounding_base)
    assert seen == [{torch.float32}] * 2


def test_a_run_with_8bit_adam_is_saved_and_goes_on_where_it_was(
    rounding_base: Base, circles: Path, tmp_path: Path
) -> None:
    options = {"mixed_precision": "bf16", "use_8bit_adam": True}
    with unvalidated():
        train_until(2, make_config(circles, tmp_path / "straight", 3, **options), rounding_base)
        for step in (1, 2):
            train_until(step, make_config(circles, tmp_path / "stopped", 3, **options), rounding_base)
    straight, stopped = (load_file(checkpoint_path(tmp_path / name, 2)) for name in ("straight", "stopped"))
    assert straight.keys() == stopped.keys()
    assert any(tensor.dtype == torch.uint8 and "state1" in name for name, tensor in straight.items())
    for name, tensor in straight.items():
        assert torch.equal(tensor, stopped[name]), name


def test_the_norm_of_rounded_gradients_is_that_of_their_values() -> None:
    gradients = [torch.randn(shape, generator=torch.Generator().manual_seed(0)) for shape in ((64, 40, 3, 3), (7,), ())]
    halves = [gradients[0].bfloat16().to(memory_format=torch.channels_last), *gradients[1:]]
    wanted = torch.cat([each.double().flatten() for each in halves]).norm()
    assert norm_of(halves).item() == pytest.approx(wanted.item(), rel=1e-5)
    assert norm_of([each.float() for each in halves]).item() == pytest.approx(wanted.item(), rel=1e-5)
