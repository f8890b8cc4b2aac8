"""Many processes that share the trained weights out (`--strategy fsdp`), by torch's `fully_shard`.

Each holds a part of every trained weight, of its gradient and of the optimizer's state, and gets the rest from the
others when a block is computed. The locked base is whole in each. Files are those of one process: a checkpoint and a
control are gathered in the first, so a run goes on in any other number of processes, sharded or not.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_map_only

from controlnet.control import ControlNet, Decoder, Encoder
from controlnet.errors import UserError
from controlnet.training.module import ControlNetModule
from controlnet.training.ranks import LOST


class SharedOut(DDPStrategy):
    """Lightning's way to start processes and to part data, with the trained weights in shares.

    Gradients are summed during backward, over the processes that hold a weight's shares.
    """

    def __init__(self, check_same: Callable[[Sequence[Tensor]], None], **named: Any) -> None:
        """`check_same` raises unless tensors are equal in all processes."""
        super().__init__(**named)
        self.check_same = check_same

    def configure_ddp(self) -> None:
        module = self.lightning_module
        assert isinstance(module, ControlNetModule)
        self.check_same(list(module.trained().values()))
        shard(module, self.root_device.type)

    def training_step(self, *arguments: Any, **named: Any) -> Any:
        with _hearing_others():
            return super().training_step(*arguments, **named)

    def teardown(self) -> None:
        """Weights stay where they are: of a step that failed, some are whole and some are not."""
        self.precision_plugin.teardown()
        assert self.accelerator is not None
        self.accelerator.teardown()
        self.checkpoint_io.teardown()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Whole, in the first process; nothing in the others, which don't write. All must ask."""
        return gathered(super().lightning_module_state_dict())

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Tensor]:
        """Likewise."""
        return gathered(super().optimizer_state(optimizer))

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Of a whole checkpoint, each process takes its shares."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [each for group in optimizer.param_groups for each in group["params"]]
            shares = {
                number: {name: share(value, parameters[number]) for name, value in values.items()}
                for number, values in state["state"].items()
            }
            optimizer.load_state_dict({**state, "state": shares})


def shard(module: ControlNetModule, device: str) -> None:
    """Share out the weights of a module that is whole, and equal, in all processes.

    A block is whole only while it is computed; what belongs to no block stays whole from forward to backward. The
    module forgets its optimizers' old parameters: make them afterwards.
    """
    mesh = init_device_mesh(device, (dist.get_world_size(),))
    empty = copy.deepcopy(module.control).to("meta")
    module.control.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # as shares must lie
    for block in (*_blocks(module.control), module):
        fully_shard(block, mesh=mesh)
        assert isinstance(block, FSDPModule)
        block.set_gradient_divide_factor(1.0)  # a micro-batch's loss is divided by all pairs of a step already
        block.set_force_sum_reduction_for_comms(True)  # gloo can only sum
    if module.average is not None:
        module.average.follow(module.trained(), share)
    module.gather = partial(gather, module, empty)


def gather(module: ControlNetModule, empty: ControlNet) -> ControlNet:
    """The control as it is saved, in the first process; all must ask. `empty` has its structure and no weights."""
    tensors = dict(module.control.state_dict())
    if module.average is not None:
        tensors |= module.average.means()
    control = copy.deepcopy(empty)
    if whole := gathered(tensors, module.device):
        control.load_state_dict(whole, assign=True)
        control.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return control


def gathered(state: Any, device: torch.device | None = None) -> Any:
    """A nest of dicts and lists with its shared tensors whole, on the CPU or a device; {} in all but the first."""
    is_first = dist.get_rank() == 0

    def whole(shared: DTensor) -> Tensor | None:
        full: Tensor = shared.full_tensor().detach()
        return full.to(device or "cpu") if is_first else None

    with _hearing_others():
        state = tree_map_only(DTensor, whole, state)
    return state if is_first else {}


def share(whole: Any, parameter: Tensor) -> Any:
    """This process's part of a tensor that belongs to a shared parameter; all else as it is."""
    if not isinstance(parameter, DTensor) or not isinstance(whole, Tensor) or whole.shape != parameter.shape:
        return whole
    whole = whole.to(parameter.device).contiguous()
    return distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None)


@contextmanager
def _hearing_others() -> Iterator[None]:
    """Errors of the network, which may come from anywhere in a step, as a UserError."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or "gloo" in str(error):  # whose errors have no type of their own
            raise UserError(LOST) from error
        raise


def _blocks(control: ControlNet) -> Iterator[nn.Module]:
    """Of encoder and decoder, those that hold nearly all of the weights and are computed one after another."""
    parts: list[Encoder | Decoder] = [control.encoder, *([control.decoder] if control.decoder is not None else [])]
    for part in parts:
        for block in part.children():
            if isinstance(block, nn.ModuleList):
                yield from block
            elif hasattr(block, "resnets"):
                yield block
