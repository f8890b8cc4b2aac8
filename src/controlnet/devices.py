"""Where to compute and how precisely; torch is imported when asked, not before."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from controlnet.errors import UserError

if TYPE_CHECKING:
    import torch

Device = Literal["auto", "cpu", "cuda", "mps"]
DType = Literal["auto", "float32", "bfloat16", "float16"]


def choose_device(name: Device = "auto") -> "torch.device":
    """The device called `name`; auto takes CUDA, else MPS, else the CPU. UserError where the named one is missing."""
    import torch

    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(device for device, present in available.items() if present))
    if name not in available:
        raise UserError(f"device {name!r}; expected one of: auto, cpu, cuda, mps")
    if not available[name]:
        raise UserError(
            f"device {name!r} was asked for, but torch {torch.__version__} finds none on this machine; "
            f"use auto or cpu, or install a build of torch for {name} (see README)"
        )
    return torch.device(name)


def choose_dtype(name: DType, device: "torch.device") -> "torch.dtype":
    """The precision called `name`; auto is float32 on a CPU, bfloat16 where a GPU computes in it, else float16."""
    import torch

    table = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name == "auto":
        if device.type == "cpu":
            return torch.float32
        return torch.bfloat16 if has_fast_bfloat16(device) else torch.float16
    if name not in table:
        raise UserError(f"dtype {name!r}; expected one of: auto, {', '.join(table)}")
    return table[name]


def fastest_dtype(name: DType, device: Device) -> DType:
    """`name`, but bfloat16 for auto where the device is fast at it, a CPU too: for a base whose weights stay as they
    are, in training (what is trained stays float32) and in generation."""
    return "bfloat16" if name == "auto" and has_fast_bfloat16(choose_device(device)) else name


def has_fast_bfloat16(device: "torch.device") -> bool:
    """Whether `device` multiplies bfloat16 in hardware that is made for it, so that autocast to it is faster."""
    import torch

    match device.type:
        case "cuda":
            return torch.cuda.is_bf16_supported(including_emulation=False)
        case "cpu":
            return torch.cpu._is_amx_tile_supported() or _has_fast_avx512_bfloat16()
    return False


def _has_fast_avx512_bfloat16() -> bool:
    """Intel's processors since Sapphire Rapids, which also have AVX512-FP16, leave bfloat16 to AMX: where a virtual
    machine hides that, AVX512-BF16 has 160 GFLOP/s and float32 300 (two cores, products and convolutions)."""
    import torch

    features: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # newer torch tells
    return torch.cpu._is_avx512_bf16_supported() and not features.get("avx512_fp16", False)
