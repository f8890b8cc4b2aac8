"""How much of a device's memory a call needs, and the fastest way of those in memory.py that fits into a limit.

Weights are counted. For the rest each stage is run once on torch's meta device, whose tensors have sizes and no
content: what lives at the same time is added up. What is not seen there, workspaces of kernels and gaps between
tensors, is allowed for.

Shapes: b pictures of a batch, s sides of guidance, c channels, h w latent size, H W picture size.
"""

import copy
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from controlnet.base import Base
from controlnet.control import ControlNet, predict
from controlnet.errors import UserError
from controlnet.generation.memory import MODES, Memory, VaeWay, gigabytes, parse_bytes
from controlnet.generation.placing import groups, stages_of, with_attention, with_vae
from controlnet.generation.request import Request

UNSEEN = 1.2  # times what is seen of tensors: an estimate, not measured on a GPU yet
CONTEXT = {"cuda": 500 * 10**6}  # bytes that a process takes of a device before any tensor is there


@dataclass(frozen=True)
class Needs:
    """Bytes of the device, at the worst moment of each stage."""

    weights: Mapping[str, int]
    working: Mapping[str, int]
    context: int

    @property
    def stages(self) -> dict[str, int]:
        return {name: self.weights[name] + working + self.context for name, working in self.working.items()}

    @property
    def peak(self) -> int:
        return max(self.stages.values())

    def __str__(self) -> str:
        stages = ", ".join(f"{name} {gigabytes(size)}" for name, size in self.stages.items())
        return f"about {gigabytes(self.peak)} ({stages})"


def settled(request: Request) -> Memory:
    """How the request uses memory: as it says, or the fastest way within the limit that it says."""
    if isinstance(request.memory, Memory):
        return request.memory
    return choose([request], MODES, parse_bytes(request.memory))[0]


def choose(requests: Sequence[Request], modes: Sequence[Memory], limit: int) -> tuple[Memory, Needs]:
    """The first of the modes in which every request fits into `limit` bytes, and what it needs; UserError if none."""
    base = requests[0].base
    if base.device.type == "cpu":  # models that wait in main memory are where they would be at work
        modes = list(dict.fromkeys(replace(mode, offload="none") for mode in modes))
    tried, known = list[str](), dict[Any, Mapping[str, int]]()
    for mode in modes:
        worst = max((needs(request, mode, known) for request in requests), key=lambda each: each.peak)
        if worst.peak <= limit:
            return mode, worst
        tried.append(f"  {mode}: {worst}")
    raise UserError(
        f"{gigabytes(limit)} of memory are too little; make smaller pictures, fewer at a time, or store the base in 8 "
        "bits:\n" + "\n".join(tried)
    )


def needs(request: Request, memory: Memory, known: dict[Any, Mapping[str, int]] | None = None) -> Needs:
    """Of a request that is checked. What is `known` from other modes is not computed again, and added to."""
    known = {} if known is None else known
    controls = [unit.control for unit in request.units if any(unit.strengths(request.step_count))]
    vae: VaeWay = "whole" if memory.vae == "sliced" and _together(request) == 1 else memory.vae
    key = (request, vae, memory.attention)
    if key not in known:
        base, its_controls = without_content(request.base, controls)
        with with_attention([base.unet, *its_controls], memory.attention), with_vae(base.vae, vae):
            known[key] = {name: round(UNSEEN * peak(run)) for name, run in runs(request, base, its_controls)}
    context = CONTEXT.get(request.base.device.type, 0)
    return Needs(weights(request.base, controls, memory), known[key], context)


def weights(base: Base, controls: Sequence[ControlNet], memory: Memory) -> dict[str, int]:
    """Bytes on the device by stage."""
    stages = stages_of(base, controls)
    if memory.offload == "none":
        everything = sum(group.size for group in groups(base, controls, "none"))
        return dict.fromkeys(stages, everything)
    found = {}
    for name, models in stages.items():
        inside = {id(module) for model in models for module in model.modules()}
        found[name] = max(
            group.size for group in groups(base, controls, memory.offload) if id(group.modules[0]) in inside
        )
    return found


def peak(run: Callable[[], object]) -> int:
    """The most bytes of tensors that are made by `run` and live at the same time."""
    with torch.inference_mode(), _FusedAttention(), _Ledger() as ledger:
        run()
    return ledger.most


def without_content(base: Base, controls: Sequence[ControlNet]) -> tuple[Base, list[ControlNet]]:
    """The base and its controls on the meta device."""
    models: tuple[Any, ...] = (base.unet, base.vae, *base.text_encoders, *controls)
    memo: dict[int, Any] = {}
    for model in models:
        for tensor in [*model.parameters(), *model.buffers()]:
            there = tensor.detach().to("meta")
            memo[id(tensor)] = nn.Parameter(there, False) if isinstance(tensor, nn.Parameter) else there
    unet, vae, *others = copy.deepcopy(models, memo)
    texts, its_controls = others[: len(base.text_encoders)], others[len(base.text_encoders) :]
    return Base(unet, vae, texts, base.tokenizers, base.scheduler_config, base.family, base.source), its_controls


def runs(request: Request, base: Base, controls: Sequence[ControlNet]) -> Iterator[tuple[str, Callable[[], object]]]:
    """What each stage computes, for a batch."""
    count = _together(request)
    sides = 2 if any(scale != 1 for scale in request.guidance_scales) else 1
    height, width = request.size
    texts = [request.negative, *request.prompts[:count]]
    shape_chw = (base.vae.config.latent_channels, height // base.factor, width // base.factor)
    hint_channels = [next(control.hint_encoder.parameters()).shape[1] for control in controls]

    def nothing(*shape: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, device="meta", dtype=dtype)

    def sample() -> None:
        prompt = base.encode_prompts(texts, request.settings.clip_skip, request.size)[:1].expand(sides * count)
        hints = [
            control.encode_hint(nothing(count, channels, height, width, dtype=base.dtype)).repeat(sides, 1, 1, 1)
            for control, channels in zip(controls, hint_channels, strict=True)
        ]
        latent_bchw = nothing(sides * count, base.unet.config.in_channels, *shape_chw[1:], dtype=base.dtype)
        timestep_b = nothing(sides * count, dtype=torch.int64)
        said = [
            control(latent_bchw[:, : control.encoder.conv_in.in_channels], timestep_b, prompt, hint)
            for control, hint in zip(controls, hints, strict=True)
        ]
        predict(base.encoder, base.decoder, latent_bchw, timestep_b, prompt, reduce(add, said) if said else None)

    def paint() -> None:
        base.decode_latents(nothing(count, *shape_chw, dtype=torch.float32))
        if request.image is not None:
            base.encode_moments(nothing(count, 3, height, width, dtype=torch.float32))

    yield "prompts", lambda: base.encode_prompts(texts, request.settings.clip_skip, request.size)
    yield "sampling", sample
    yield "pictures", paint


def _together(request: Request) -> int:
    """Pictures of a batch."""
    return min(request.batch_size, len(request.prompts))


class _FusedAttention(TorchFunctionMode):
    """As kernels do it that keep no scores; on the meta device torch would write them out."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is scaled_dot_product_attention:
            query, value = ([*args, *(kwargs or {}).values()][place] for place in (0, 2))
            return query.new_empty(*query.shape[:-1], value.shape[-1])
        return func(*args, **(kwargs or {}))


class _Ledger(TorchDispatchMode):
    """Counts the storages that live."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._sizes: dict[int, int] = {}
        self.now = self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor) and tensor.is_meta:
                self._enter(tensor.untyped_storage())
        self.most = max(self.most, self.now)
        return made

    def _enter(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self.now += self._sizes[key]
            weakref.finalize(storage, self._leave, key)

    def _leave(self, key: int) -> None:
        self.now -= self._sizes.pop(key)
