"""Where a call's models are while it works: brought to the device as they are needed, away after.

Models are cut into groups. The first call of a group's layer sends the group before it away and brings its own; nobody
who calls a layer need know. Weights are locked, so a group leaves by being dropped: main memory has kept it.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from diffusers.models.attention_processor import (
    Attention,
    AttnProcessor2_0,
    SlicedAttnProcessor,
    XFormersAttnProcessor,
)
from diffusers.utils.import_utils import is_xformers_available
from torch import Tensor, nn

from controlnet.base import Base
from controlnet.control import ControlNet
from controlnet.errors import UserError
from controlnet.generation import memory as ways
from controlnet.generation.memory import Memory

BLOCK = 100 * 10**6  # bytes of a group, if no layer alone is larger: SD 1.5's largest blocks in half precision
TILE = 512  # pixels along a side of the VAE's tiles: what SD 1.x's was trained on

PROCESSORS: dict[ways.Attention, Callable[[], Any]] = {
    "sdpa": AttnProcessor2_0,
    "sliced": lambda: SlicedAttnProcessor(1),  # the original's: the scores of one head at a time
    "xformers": XFormersAttnProcessor,
}


@dataclass(eq=False)
class Group:
    """Modules, each with the tensors that it owns itself, that come and go together."""

    modules: Sequence[nn.Module]
    _kept: list[tuple[nn.Module, str, Tensor]] = field(default_factory=list)

    @property
    def size(self) -> int:
        """In bytes."""
        return sum(tensor.nbytes for module in self.modules for _, tensor in owned(module))

    def arrive(self, device: torch.device) -> None:
        for module in self.modules:
            for name, tensor in owned(module):
                self._kept.append((module, name, tensor))
                there = tensor.detach().to(device)
                setattr(module, name, nn.Parameter(there, False) if isinstance(tensor, nn.Parameter) else there)

    def leave(self) -> None:
        for module, name, tensor in self._kept:
            setattr(module, name, tensor)
        self._kept.clear()


@contextmanager
def at_work(base: Base, controls: Sequence[ControlNet], memory: Memory) -> Iterator[None]:
    """While this holds, base and controls compute on the base's device as `memory` says; then all is as it was.

    UserError where it cannot be done here.
    """
    if memory.offload != "none" and base.home is None and base.device.type != "cpu":
        raise UserError(
            f"offload {memory.offload}, and the base's models are on {base.device} to stay; "
            "open it by open_base(..., resident=False)"
        )
    attending = with_attention([base.unet, *controls], memory.attention)
    with attending, with_vae(base.vae, memory.vae), _moving(base, groups(base, controls, memory.offload)):
        yield


def groups(base: Base, controls: Sequence[ControlNet], offload: ways.Offload) -> list[Group]:
    """Everything that computes, in the groups that are on the device together."""
    stages = stages_of(base, controls).values()
    match offload:
        case "none":
            return [_group(chain(*stages))]
        case "models":
            return [_group(models) for models in stages]
    return [piece for models in stages for model in models for piece in _pieces(model)]


def stages_of(base: Base, controls: Sequence[ControlNet]) -> dict[str, list[nn.Module]]:
    """The models of each stage of a call."""
    return {
        "prompts": list(base.text_encoders),
        "sampling": [base.unet, *dict.fromkeys(controls)],
        "pictures": [base.vae],
    }


def settle(base: Base, controls: Sequence[ControlNet]) -> None:
    """Everything to the base's device, to stay."""
    device = base.device
    for model in chain(*stages_of(base, controls).values()):
        model.to(device)
    base.home = None


@contextmanager
def with_attention(models: Sequence[nn.Module], way: ways.Attention) -> Iterator[None]:
    """While this holds, the attention layers of the models compute so."""
    check_attention(way)
    layers = [layer for model in models for layer in model.modules() if isinstance(layer, Attention)]
    before = [layer.processor for layer in layers]
    try:
        if way != "auto":
            for layer in layers:
                layer.set_processor(PROCESSORS[way]())
        yield
    finally:
        for layer, processor in zip(layers, before, strict=True):
            layer.set_processor(processor)


def check_attention(way: ways.Attention) -> None:
    """UserError if it cannot be had here."""
    if way == "xformers" and not is_xformers_available():
        raise UserError("attention xformers, which is not installed; install xformers, or choose auto")


@contextmanager
def with_vae(vae: Any, way: ways.VaeWay) -> Iterator[None]:
    """While this holds, the VAE works so."""
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    wanted: dict[str, Any] = {"use_slicing": way != "whole"}
    if way == "tiled":
        wanted |= {"use_tiling": True, "tile_sample_min_size": TILE, "tile_latent_min_size": TILE // factor}
    before = {name: getattr(vae, name) for name in wanted}
    try:
        vars(vae).update(wanted)
        yield
    finally:
        vars(vae).update(before)


@contextmanager
def _moving(base: Base, parts: Sequence[Group]) -> Iterator[None]:
    """While this holds, calling a layer brings its group to the base's device and sends the one before it away."""
    if base.home is None:
        yield
        return
    device, present = base.home, list[Group]()

    def bring(group: Group) -> None:
        if present != [group]:
            while present:
                present.pop().leave()
            present.append(group)
            group.arrive(device)

    def hook_of(group: Group) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
        def hook(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            bring(group)
            return tuple(it.to(device) if isinstance(it, Tensor) else it for it in inputs)  # hints are in main memory

        return hook

    hooks = [module.register_forward_pre_hook(hook_of(group)) for group in parts for module in group.modules]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for group in present:
            group.leave()


def owned(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Its own parameters and buffers, without those of the modules in it."""
    return [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]


def _group(models: Iterator[nn.Module] | Sequence[nn.Module]) -> Group:
    return Group([module for model in models for module in model.modules() if owned(module)])


def _pieces(module: nn.Module) -> Iterator[Group]:
    """Its modules in groups of at most BLOCK, in the order in which they are called."""
    whole = _group([module])
    children = list(module.children())
    if not children or (whole.size <= BLOCK and not isinstance(module, nn.ModuleList)):
        if whole.modules:
            yield whole
        return
    if owned(module):
        yield Group([module])
    for child in children:
        yield from _pieces(child)
