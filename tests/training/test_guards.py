"""A step is taken or not, whole or in parts, and its user hears why."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from controlnet.base import Base
from controlnet.errors import UserError
from controlnet.training import optimizers
from controlnet.training.checkpoint import checkpoint_path, checkpoints
from controlnet.training.guards import is_out_of_memory, remedies
from controlnet.training.run import train
from controlnet.training.stepwise import StepwiseModule
from tiny_runs import differences, distance, make_config, train_until, unvalidated


@contextmanager
def loss_of(change: Callable[[StepwiseModule, Tensor, int], Tensor]) -> Iterator[None]:
    """Change the loss of a module's forward passes: (module, loss, pairs) -> loss."""
    with pytest.MonkeyPatch.context() as patch:
        original = StepwiseModule.loss
        patch.setattr(
            StepwiseModule,
            "loss",
            lambda self, step, model: change(self, original(self, step, model), len(step[1].timestep_b)),
        )
        yield


def spoilt(*steps: int) -> Callable[[StepwiseModule, Tensor, int], Tensor]:
    """Not finite at these steps, counted from 1."""
    return lambda module, loss, pairs: loss * float("nan") if module.trainer.global_step + 1 in steps else loss


def state(run: Path, step: int) -> dict[str, Tensor]:
    """Weights and optimizer state, without what counts steps."""
    tensors = load_file(checkpoint_path(run, step))
    return {name: tensor for name, tensor in tensors.items() if "exp_avg" in name or "state_dict" in name}


def test_a_step_that_is_not_finite_is_not_taken_and_its_samples_and_seed_are_named(
    base: Base, circles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(circles, tmp_path, 5, checkpointing_steps=1, checkpoints_total_limit=9, seed=7)
    with unvalidated(), loss_of(spoilt(2)):
        train_until(3, config, base)
    before, after, next_one = (state(tmp_path, step) for step in (1, 2, 3))
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not all(torch.equal(after[name], next_one[name]) for name in after)
    told = capsys.readouterr().err
    assert "step 2 was not taken: its loss or gradient is not finite; samples " in told
    assert told.count("was not taken") == 1
    assert "seed 7" in told


def test_an_optimizer_that_cannot_skip_by_itself_skips_too(base: Base, circles: Path, tmp_path: Path) -> None:
    config = make_config(circles, tmp_path, 5, checkpointing_steps=1, checkpoints_total_limit=9)
    with pytest.MonkeyPatch.context() as patch, unvalidated(), loss_of(spoilt(2)):
        made = partial(torch.optim.AdamW, foreach=True)
        patch.setattr(optimizers, "ChannelsLastAdamW", lambda *groups, fused, **named: made(*groups, **named))
        train_until(2, config, base)
    before, after = state(tmp_path, 1), state(tmp_path, 2)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_five_such_steps_in_a_row_stop_the_run_with_the_last_checkpoint_named(
    base: Base, circles: Path, tmp_path: Path
) -> None:
    config = make_config(circles, tmp_path, 20, checkpointing_steps=2, seed=7)
    told = r"5 steps in a row .* the last being step 12; samples [\d, ]+, seed 7\. .*checkpoint is that of step 10"
    with unvalidated(), loss_of(spoilt(3, 4, 5, 6, 8, 9, 10, 11, 12)), pytest.raises(UserError, match=told):
        train(config, base=base)
    assert [step for step, _ in checkpoints(tmp_path)] == [8, 10]


def test_out_of_memory_says_what_helps(base: Base, circles: Path, tmp_path: Path) -> None:
    def exhausted(module: StepwiseModule, loss: Tensor, pairs: int) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    with unvalidated(), loss_of(exhausted), pytest.raises(UserError) as told:
        train(make_config(circles, tmp_path, 2, gradient_accumulation_steps=2), base=base)
    assert "out of memory with 4 pairs at once" in str(told.value)
    assert "--train-batch-size 2 --gradient-accumulation-steps 4" in str(told.value)
    assert "--auto-micro-batch" in str(told.value)


def test_with_smaller_parts_the_same_step_is_repeated_with_equal_result(
    base: Base, circles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    roomy, tight, small = (tmp_path / name for name in ("roomy", "tight", "small"))
    sizes: list[int] = []

    def too_large(module: StepwiseModule, loss: Tensor, pairs: int) -> Tensor:
        sizes.append(pairs)
        if module.trainer.global_step == 1 and pairs > 1 and len(sizes) > 2:  # the second step, in its second part
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return loss

    options = {"gradient_accumulation_steps": 2, "train_batch_size": 2}
    with unvalidated():
        train_until(2, make_config(circles, roomy, 3, **options), base)
        with loss_of(too_large):
            train_until(2, make_config(circles, tight, 3, auto_micro_batch=True, **options), base)
        assert sizes == [2, 2, 2, 1, 1, 1, 1]
        assert "repeated with 1 pairs at once" in capsys.readouterr().err
        # the first step in parts of 2, the second in parts of 1: as if it had been asked for
        train_until(1, make_config(circles, small, 3, **options), base)
        train_until(2, make_config(circles, small, 3, train_batch_size=1, gradient_accumulation_steps=4), base)
    assert not differences(small, tight, 2)
    assert distance(roomy, tight, 2) < 1e-3


def test_a_step_that_does_not_fit_pair_by_pair_ends_the_run(base: Base, circles: Path, tmp_path: Path) -> None:
    def exhausted(module: StepwiseModule, loss: Tensor, pairs: int) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with unvalidated(), loss_of(exhausted), pytest.raises(UserError, match="out of memory with 1 pair at once"):
        train(make_config(circles, tmp_path, 2, auto_micro_batch=True), base=base)


def test_the_allocators_own_errors_are_told_from_all_others() -> None:
    with pytest.raises(RuntimeError) as real:
        torch.empty(2**60, dtype=torch.uint8)  # more than any machine has
    assert is_out_of_memory(real.value)
    assert is_out_of_memory(torch.OutOfMemoryError("HIP out of memory"))
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("CUDA error: an illegal memory access was encountered"))
    assert not is_out_of_memory(ValueError("can't allocate memory"))


def test_gradients_are_clipped_to_the_norm_asked_for(base: Base, circles: Path, tmp_path: Path) -> None:
    norms: list[float] = []
    with unvalidated(), pytest.MonkeyPatch.context() as patch:
        original = StepwiseModule._take

        def watch(self: StepwiseModule, optimizer: object, gradients: list[Tensor], loss: Tensor) -> Tensor:
            taken = original(self, optimizer, gradients, loss)
            norms.append(float(torch.nn.utils.get_total_norm(gradients)))
            return taken

        patch.setattr(StepwiseModule, "_take", watch)
        train_until(1, make_config(circles, tmp_path / "free", 2), base)
        train_until(1, make_config(circles, tmp_path / "clipped", 2, max_grad_norm=norms[0] / 3), base)
    assert norms[1] == pytest.approx(norms[0] / 3, rel=1e-4)


def test_what_is_in_use_already_is_not_proposed() -> None:
    told = remedies(1, 4, 2, checkpoints=True, eight_bit=True)
    assert "--gradient-checkpointing" not in told
    assert "--use-8bit-adam" not in told
    assert "--auto-micro-batch" not in told
    assert "out of memory with 1 pair at once" in told


def test_what_does_not_go_with_shares_is_not_proposed_to_them() -> None:
    told = remedies(4, 16, 2, checkpoints=False, eight_bit=False, shares=True)
    assert "--train-batch-size 2 --gradient-accumulation-steps 4" in told
    assert "--gradient-checkpointing" in told
    assert "--auto-micro-batch" not in told
    assert "--use-8bit-adam" not in told
