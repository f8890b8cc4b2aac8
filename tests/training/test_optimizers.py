"""How the learning rate goes, and what is optimised: as diffusers and torch would."""

from typing import get_args

import pytest
import torch
from diffusers.optimization import get_scheduler
from torch import nn
from torch.profiler import profile

from controlnet.errors import UserError
from controlnet.training.averages import Average
from controlnet.training.config import TrainConfig
from controlnet.training.optimizers import SCHEDULES, Optimization, Schedule
from controlnet.training.options import LrScheduler

STEPS, RATE = 40, 1e-3


def rates(schedule: Schedule) -> list[float]:
    """The learning rate of each step."""
    optimizer = Optimization(RATE, schedule=schedule).optimizer([nn.Parameter(torch.zeros(2))], [])
    scheduler = Optimization(RATE, schedule=schedule).rates(optimizer, lambda: STEPS)
    seen = []
    for _ in range(STEPS):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


@pytest.mark.parametrize("name", get_args(LrScheduler))
@pytest.mark.parametrize("warmup", [0, 7])
def test_every_schedule_is_that_of_diffusers_under_its_name(name: LrScheduler, warmup: int) -> None:
    rules = "1:10,0.1:20,0.01" if name == "piecewise_constant" else None
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(2))], lr=RATE)
    told = dict(step_rules=rules, num_warmup_steps=warmup, num_training_steps=STEPS, num_cycles=2, power=1.5)
    scheduler = get_scheduler(name, optimizer, **told)
    theirs = []
    for _ in range(STEPS):
        theirs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates(Schedule(name, warmup, num_cycles=2, power=1.5, step_rules=rules)) == pytest.approx(theirs, rel=1e-6)


def test_every_schedule_that_is_offered_is_there() -> None:
    assert set(SCHEDULES) == set(get_args(LrScheduler))


def test_rules_that_are_none_are_told() -> None:
    with pytest.raises(UserError, match="'1:x,2'; expected SHARE:STEP"):
        Schedule("piecewise_constant", step_rules="1:x,2").shares()


def test_the_options_reach_the_optimizer_and_each_group_has_its_rate(tmp_path) -> None:  # type: ignore[no-untyped-def]
    config = TrainConfig(
        data="d",
        out=tmp_path,
        learning_rate=1e-4,
        sd_unlocked=True,
        learning_rate_unlocked=1e-6,
        scale_lr=True,
        adam_beta1=0.8,
        adam_beta2=0.99,
        adam_weight_decay=0.1,
        adam_epsilon=1e-6,
    )
    parameters = [nn.Parameter(torch.zeros(2)) for _ in range(3)]
    optimizer = Optimization.of(config, pairs_per_step=8).optimizer(parameters[:1], parameters[1:])
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([8e-4, 8e-6])
    assert [len(group["params"]) for group in optimizer.param_groups] == [1, 2]
    for group in optimizer.param_groups:
        assert (group["betas"], group["eps"], group["weight_decay"]) == ((0.8, 0.99), 1e-6, 0.1)


def test_an_average_follows_its_weights_and_stands_in_for_them() -> None:
    weight = nn.Parameter(torch.zeros(3))
    average = Average({"layer.weight": weight}, decay=0.5)
    expected = torch.zeros(3)
    for step in range(1, 30):
        weight.data += 1.0
        average.update()
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * weight.data
    mean = average.state_dict()["layer-weight"].clone()
    assert torch.allclose(mean, expected)
    with average.in_place():
        assert torch.equal(weight.data, mean)
    assert torch.equal(weight.data, torch.full((3,), 29.0))
    assert torch.equal(average.state_dict()["layer-weight"], mean)


def test_8bit_adam_is_near_adam_and_its_state_a_quarter() -> None:
    """bitsandbytes keeps tensors of fewer than 4,096 numbers in float32."""
    torch.manual_seed(0)
    start, target = torch.randn(64, 128), torch.randn(64, 128)
    ended, states = [], []
    for is_8bit in (False, True):
        weight = nn.Parameter(start.clone())
        optimizer = Optimization(1e-2, is_8bit=is_8bit).optimizer([weight], [])
        for _ in range(20):
            optimizer.zero_grad()
            (weight - target).square().mean().backward()
            optimizer.step()
        ended.append(weight.detach())
        state = optimizer.state[weight]
        states.append(sum(x.nbytes for x in state.values() if isinstance(x, torch.Tensor) and x.numel() >= 4096))
    moved = (ended[0] - start).norm()
    assert (ended[1] - ended[0]).norm() < 0.1 * moved
    assert states[1] * 4 == states[0]


def test_convolutions_that_are_channels_last_are_optimised_where_they_are_as_torch_would() -> None:
    weights = torch.randn(8, 6, 3, 3, generator=torch.Generator().manual_seed(0))
    ours, theirs = (nn.Parameter(weights.clone().to(memory_format=torch.channels_last)) for _ in range(2))
    optimizers = Optimization(RATE).optimizer([ours], []), torch.optim.AdamW([theirs], RATE, fused=True)
    for step in range(3):
        for parameter in (ours, theirs):
            parameter.grad = weights.roll(step + 1).to(memory_format=torch.channels_last)
        with profile(record_shapes=True) as recorded:
            optimizers[0].step()
        optimizers[1].step()
        assert not [it for it in recorded.events() or [] if it.name == "aten::copy_" and len(it.input_shapes[0]) > 1]
    assert torch.equal(ours, theirs)
    assert ours.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("is_channels_last", [True, False])
def test_gradients_in_bfloat16_are_taken_for_what_they_are_row_by_row(
    is_channels_last: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controlnet.training.optimizers.AT_ONCE", 300)  # of 1,152: four parts
    memory_format = torch.channels_last if is_channels_last else torch.contiguous_format
    weights = torch.randn(8, 16, 3, 3, generator=torch.Generator().manual_seed(0)).to(memory_format=memory_format)
    ours, theirs = (nn.Parameter(weights.clone(memory_format=torch.preserve_format)) for _ in range(2))
    scalars = [nn.Parameter(torch.tensor(1.0)) for _ in range(2)]
    mine, peers = (Optimization(RATE).optimizer(list(each), []) for each in zip((ours, theirs), scalars, strict=True))
    ours.grad_dtype = torch.bfloat16
    for step in range(4):
        rounded = weights.roll(step + 1).to(memory_format=memory_format).bfloat16()
        ours.grad, theirs.grad = rounded, rounded.float()
        for scalar in scalars:
            scalar.grad = torch.tensor(0.5)
        for optimizer in (mine, peers):
            optimizer.grad_scale = torch.tensor(2.0)  # type: ignore[attr-defined]
            optimizer.found_inf = torch.tensor(float(step == 1))  # type: ignore[attr-defined]  # the second is not taken
            optimizer.step()
        assert torch.equal(ours, theirs)
    assert torch.equal(*scalars)
    assert not torch.equal(ours, weights)
    states = mine.state[ours], peers.state[theirs]
    assert {name: bool(torch.equal(x, states[1][name])) for name, x in states[0].items()} == dict.fromkeys(
        ("step", "exp_avg", "exp_avg_sq"), True
    )
    assert states[0]["step"] == 3
