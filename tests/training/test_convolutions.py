"""A convolution as a matrix product is torch's, and so are its gradients."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import profile

from controlnet.training.convolutions import TrainedConv2d, quicken
from parity.reference import relative_error


def twins(stride: int = 1, bias: bool = True) -> tuple[nn.Conv2d, nn.Conv2d]:
    """Ours and torch's, with equal weights."""
    torch.manual_seed(0)
    ours, theirs = (nn.Conv2d(24, 160, 3, stride, padding=1, bias=bias) for _ in range(2))
    ours.load_state_dict(theirs.state_dict())
    for each in (ours, theirs):
        each.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    quicken(ours)
    return ours, theirs


def kernels(compute: Callable[[], Tensor]) -> set[str]:
    with profile() as recorded:
        compute()
    return {event.name for event in recorded.events() or []}


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(8, 8), (6, 10), (7, 5)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_product_is_the_convolution_and_so_are_its_gradients(stride: int, size: tuple[int, int], bias: bool) -> None:
    ours, theirs = twins(stride, bias)
    mine, peers = (torch.randn(2, 24, *size, generator=torch.Generator().manual_seed(1)) for _ in range(2))
    outs = [conv(x.requires_grad_()) for conv, x in ((ours, mine), (theirs, peers))]
    torch.testing.assert_close(*outs, rtol=1e-4, atol=1e-5)
    says = torch.randn(outs[0].shape)
    for out in outs:
        (out * says).sum().backward()
    for my, their in zip((mine, *ours.parameters()), (peers, *theirs.parameters()), strict=True):
        assert my.grad is not None
        torch.testing.assert_close(my.grad, their.grad, rtol=1e-4, atol=1e-4)
    assert ours.weight.grad is not None
    assert ours.weight.grad.is_contiguous(memory_format=torch.channels_last)


def test_with_many_channels_a_product_is_as_near_to_the_truth_in_bfloat16_as_torchs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("controlnet.training.convolutions.has_fast_bfloat16", lambda device: True)
    torch.manual_seed(0)
    ours, theirs, exact = (nn.Conv2d(24, 1040, 3, padding=1) for _ in range(3))
    for each in (ours, theirs, exact):
        each.load_state_dict(ours.state_dict())
        each.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    quicken(ours)
    x, says = torch.randn(1, 24, 8, 8), torch.randn(1, 1040, 8, 8)

    def learn(conv: nn.Conv2d, mixed: bool) -> list[Tensor]:
        seen = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            out = conv(seen)
        (out.float() * says).sum().backward()
        gradients = [it.grad for it in (seen, *conv.parameters())]
        return [out, *(gradient for gradient in gradients if gradient is not None)]

    assert "aten::convolution" not in kernels(lambda: learn(ours, True)[0])
    ours.zero_grad()
    truth = learn(exact, False)
    assert len(truth) == 4
    for mine, peers, wanted in zip(learn(ours, True), learn(theirs, True), truth, strict=True):
        assert mine.dtype == peers.dtype
        assert relative_error(mine.float(), wanted) < 1.3 * relative_error(peers.float(), wanted) + 1e-3


def test_few_positions_in_float32_are_a_product_and_all_else_is_torchs() -> None:
    ours, _ = twins()
    few, many = torch.randn(1, 24, 8, 8), torch.randn(1, 24, 16, 16)
    assert "aten::convolution" not in kernels(lambda: ours(few))
    assert "aten::convolution" in kernels(lambda: ours(many))
    with torch.autocast("cpu", torch.bfloat16):
        assert "aten::convolution" in kernels(lambda: ours(few))


def test_frozen_weights_keep_no_input_for_the_backward_pass() -> None:
    ours, _ = twins()
    ours.requires_grad_(False)
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    x = torch.randn(1, 24, 8, 8, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda it: it):
        out = ours(x)
    assert [it.data_ptr() for it in kept] == [ours.weight.data_ptr()]
    out.sum().backward()
    assert x.grad is not None
    assert ours.weight.grad is None


def test_only_plain_convolutions_are_replaced_and_their_weights_stay() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Linear(4, 4))
    names = list(model.state_dict())
    quicken(model)
    assert [type(each) for each in model] == [TrainedConv2d, nn.Linear]
    assert list(model.state_dict()) == names
