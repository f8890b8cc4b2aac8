"""LoRAs (Hu et al. 2021, arXiv:2106.09685), merged into the weights of a base.

Merged, they cost nothing at a step, and all that works on a base works on it still. `Lora.remove` gives the base back
as it was, bit for bit. Every tensor of a file must belong to a layer of the base, or nothing is merged: peers pass
over what they don't know.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from controlnet.base import Base
from controlnet.checkpoints import ldm
from controlnet.checkpoints.eight_bit import is_in_eight_bits
from controlnet.checkpoints.tensor_file import TensorFile, open_tensors
from controlnet.errors import UserError

NAME_IN_FOLDER = "pytorch_lora_weights.safetensors"  # what diffusers writes
HEADER = "lora_adapter_metadata"  # of diffusers since 0.34
DOWN = (".lora_A.weight", ".lora.down.weight", ".lora_down.weight", ".lora_linear_layer.down.weight", ".down.weight")
UP = (".lora_B.weight", ".lora.up.weight", ".lora_up.weight", ".lora_linear_layer.up.weight", ".up.weight")
OLD_PROJECTIONS = {"to_q": "to_q", "to_k": "to_k", "to_v": "to_v", "to_out.0": "to_out"}
OLD_TEXT_PROJECTIONS = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}


@dataclass(frozen=True, eq=False)
class Lora:
    """What was merged, and the weights as they were before."""

    path: Path
    weight: float
    _before: Mapping[nn.Parameter, Tensor]

    @torch.no_grad()
    def remove(self) -> None:
        """The base as it was; of several, remove the last one first."""
        for parameter, value in self._before.items():
            parameter.copy_(value)


@dataclass(frozen=True)
class Pair:
    """The low-rank change of one layer: up (out, rank) times down (rank, in), as matrices or as kernels."""

    down: Tensor
    up: Tensor
    alpha: float

    def fits(self, weight: Tensor) -> bool:
        return (
            self.up[0].numel() == len(self.down)
            and len(self.up) * self.down[0].numel() == weight.numel()
            and len(self.up) == len(weight)
        )

    def delta(self, like: Tensor) -> Tensor:
        """In float32 and the shape of the layer's weight."""
        up, down = (each.to(like.device, torch.float32).flatten(1) for each in (self.up, self.down))
        return (up @ down).reshape(like.shape) * (self.alpha / len(down))


@torch.no_grad()
def load_lora(base: Base, source: Path | str, weight: float = 1.0) -> Lora:
    """Merge a LoRA, `weight` times, into the base's U-Net and text encoders.

    `source` is a safetensors file in diffusers' or kohya's format, or a folder with one that diffusers wrote. UserError
    for other files, and if any part of it fits nothing in this base, which then stays as it is.
    """
    if is_in_eight_bits(base.unet):
        raise UserError(f"LoRA {source}: the base is stored in 8 bits; merge LoRAs before")
    path = Path(source).expanduser()
    file = _open(path / NAME_IN_FOLDER if path.is_dir() else path)
    pairs = _pairs(base, file)
    before = {parameter: parameter.to("cpu", copy=True) for parameter in pairs}
    for parameter, pair in pairs.items():
        parameter.copy_(parameter.float() + weight * pair.delta(parameter))
    return Lora(file.path, weight, before)


def _open(path: Path) -> TensorFile:
    if path.suffix != ".safetensors" or not path.is_file():
        kind = "no safetensors file" if path.exists() else "no such file"
        raise UserError(f"LoRA {path}: {kind}; expected a .safetensors file, or a folder with {NAME_IN_FOLDER}")
    return open_tensors(path)


def _pairs(base: Base, file: TensorFile) -> dict[nn.Parameter, Pair]:
    """The weights that change, each with its change. UserError if anything is left over or does not fit."""
    layers, alphas = _layers(base), _alphas(file)
    by_stem: dict[str, dict[str, Tensor]] = {}
    for name, tensor in file.tensors.items():
        stem, role = _cut(name)
        by_stem.setdefault(stem, {})[role] = tensor
    pairs, wrong = {}, []
    for stem, roles in by_stem.items():
        if stem not in layers or not {"down", "up"} <= roles.keys() <= {"down", "up", "alpha"}:
            wrong.append(f"{stem}: {', '.join(roles)}")
            continue
        alpha = float(roles["alpha"]) if "alpha" in roles else alphas(stem, len(roles["down"]))
        pair, parameter = Pair(roles["down"], roles["up"], alpha), layers[stem].get_parameter("weight")
        if pair.fits(parameter):
            pairs[parameter] = pair
        else:
            wrong.append(f"{stem}: {tuple(pair.up.shape)} x {tuple(pair.down.shape)}, here {tuple(parameter.shape)}")
    if wrong or not pairs:
        raise UserError(
            f"LoRA {file.path}: {len(wrong)} of {len(by_stem)} parts fit nothing in this {base.family} base "
            f"({'; '.join(wrong[:3]) or 'it is empty'}); expected a LoRA for such a base, as pairs of low rank"
        )
    return pairs


def _cut(name: str) -> tuple[str, str]:
    """The layer's name and what of it the tensor is."""
    for role, endings in (("down", DOWN), ("up", UP), ("alpha", (".alpha",))):
        for ending in endings:
            if name.endswith(ending):
                return name.removesuffix(ending), role
    return name, "unknown"


def _alphas(file: TensorFile) -> Callable[[str, int], float]:
    """(layer, rank) -> alpha, as diffusers' header says; where nothing is said it is the rank."""
    try:
        said = json.loads(file.metadata.get(HEADER, "{}"))
    except ValueError as error:
        raise UserError(f"LoRA {file.path}: its header is damaged ({error}); use another copy of the file") from error
    if others := [name for name, value in said.items() if name.endswith((".use_dora", ".use_rslora")) and value]:
        raise UserError(f"LoRA {file.path}: made with {', '.join(others)}, which is not supported; use a plain LoRA")

    def alpha(stem: str, rank: int) -> float:
        part, _, layer = stem.partition(".")
        return float(said.get(f"{part}.alpha_pattern", {}).get(layer, said.get(f"{part}.lora_alpha", rank)))

    return alpha


def _layers(base: Base) -> dict[str, nn.Module]:
    """Every layer of the base that a LoRA may change, by all the names that files have for it."""
    named = dict(_unet_layers(base))
    for number, encoder in enumerate(base.text_encoders, start=1):
        part = "text_encoder" if number == 1 else f"text_encoder_{number}"
        kohya = (f"lora_te{number}_", "lora_te_") if number == 1 else (f"lora_te{number}_",)
        for name, layer in _linear_and_convolutions(encoder):
            bare = name.removeprefix("text_model.")
            full = f"text_model.{bare}"
            old, _, projection = full.rpartition(".")
            named |= {f"{part}.{bare}": layer, f"{part}.{full}": layer}
            named |= {f"{prefix}{full.replace('.', '_')}": layer for prefix in kohya}
            if projection in OLD_TEXT_PROJECTIONS:
                named[f"{part}.{old}.{OLD_TEXT_PROJECTIONS[projection]}_lora"] = layer
    return named


def _unet_layers(base: Base) -> Iterator[tuple[str, nn.Module]]:
    """diffusers' names, with and without prefix; its older ones of attention; kohya's, which for SDXL are LDM's."""
    originals = ldm.names(ldm.UNET, base.unet.state_dict())
    for name, layer in _linear_and_convolutions(base.unet):
        original = originals[f"{name}.weight"].removesuffix(".weight")
        spelled = [f"unet.{name}", name, *(f"lora_unet_{each.replace('.', '_')}" for each in (name, original))]
        for new, old in OLD_PROJECTIONS.items():
            if name.endswith(f".{new}"):
                block = name.removesuffix(f".{new}")
                spelled += [f"unet.{block}.processor.{old}_lora", f"{block}.processor.{old}_lora"]
        yield from ((each, layer) for each in spelled)


def _linear_and_convolutions(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    return ((name, layer) for name, layer in model.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d))
