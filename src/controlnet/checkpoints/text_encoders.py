"""Text encoders in single-file checkpoints: CLIP under transformers' older names, OpenCLIP under its own.

Both are transformers' `CLIPTextModel` to us. OpenCLIP stacks the matrices of queries, keys and values into one, and SD
2.x keeps a layer more than it hears: of 24 it takes what the 23rd gives, so that folders hold 23.

transformers 5 names `CLIPTextModel`'s weights without the `text_model.` that transformers 4 has and that
`CLIPTextModelWithProjection` keeps: the tables know both, and which of them holds the model itself says.
"""

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from controlnet.checkpoints import ldm
from controlnet.checkpoints.contents import Family
from controlnet.checkpoints.strict import check_fit

LAYERS_HEARD = 23  # of OpenCLIP ViT-H's 24, by SD 2.x
LOGIT_SCALE = math.log(100)  # where training CLIP ends: its upper bound (Radford et al. 2021, section 2.5)
WITHOUT_MODEL = r"^((?:cond_stage_model|conditioner\.embedders\.0)\.transformer\.)(?=embeddings\.|encoder\.|final_)"
STACKED = ("q_proj.", "k_proj.", "v_proj.")
STACK = "in_proj_"

CLIP_MODULES = {
    "text_model": "transformer.text_model",
    "embeddings": "transformer.text_model.embeddings",
    "encoder": "transformer.text_model.encoder",
    "final_layer_norm": "transformer.text_model.final_layer_norm",
}
OPENCLIP_LAYER = {
    "layer_norm1": "ln_1",
    "self_attn.q_proj": "attn.q_proj",
    "self_attn.k_proj": "attn.k_proj",
    "self_attn.v_proj": "attn.v_proj",
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}


def _clip_modules(ours: Collection[str]) -> ldm.Names:
    return CLIP_MODULES


def _openclip_modules(ours: Collection[str]) -> ldm.Names:
    prefix = "text_model." if any(name.startswith("text_model.") for name in ours) else ""
    layers = range(ldm.count(ours, f"{prefix}encoder.layers."))
    return {
        f"{prefix}embeddings.token_embedding": "token_embedding",
        f"{prefix}embeddings.position_embedding.weight": "positional_embedding",
        f"{prefix}final_layer_norm": "ln_final",
        "text_projection.weight": "text_projection",
        **{f"{prefix}encoder.layers.{layer}": f"transformer.resblocks.{layer}" for layer in layers},
    }


@dataclass(frozen=True)
class TextEncoder:
    """One of a base's text encoders: where and how a single file keeps it, and which model it is to us."""

    part: ldm.Part
    kind: Any
    is_openclip: bool
    """Then its activation is the exact GELU, and prompts are padded with the first word of the vocabulary."""


def _clip(prefix: str) -> TextEncoder:
    return TextEncoder(ldm.Part(prefix, _clip_modules, {}), CLIPTextModel, is_openclip=False)


def _openclip(prefix: str, kind: Any) -> TextEncoder:
    part = ldm.Part(prefix, _openclip_modules, {"layers": OPENCLIP_LAYER}, transposed=("text_projection.weight",))
    return TextEncoder(part, kind, is_openclip=True)


TEXT_ENCODERS: dict[Family, tuple[TextEncoder, ...]] = {
    "sd1": (_clip("cond_stage_model."),),
    "sd2": (_openclip("cond_stage_model.model.", CLIPTextModel),),
    "sdxl": (
        _clip("conditioner.embedders.0."),
        _openclip("conditioner.embedders.1.model.", CLIPTextModelWithProjection),
    ),
}


def usual_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of a single file, with the text encoders' tensors as the originals' authors saved them.

    Other tools leave out `text_model.`, or keep OpenCLIP's projection as transformers does, for the other side.
    """
    usual = {re.sub(WITHOUT_MODEL, r"\1text_model.", name): tensor for name, tensor in tensors.items()}
    for name in [name for name in usual if name.endswith(".model.text_projection.weight")]:
        usual[name.removesuffix(".weight")] = usual.pop(name).T
    return usual


def heard(encoder: TextEncoder, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What `encoder` is made of, of a single file's tensors: without SD 2.x's last layer and what comes after it.

    A file that has that layer either has the projection too, or 24 layers; some tools write only what is heard.
    """
    prefix = encoder.part.prefix
    found = {name: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    if not encoder.is_openclip or encoder.kind is CLIPTextModelWithProjection:
        return found
    layers = ldm.count(found, f"{prefix}transformer.resblocks.")
    has_last = layers > LAYERS_HEARD or (f"{prefix}text_projection" in found and layers != LAYERS_HEARD)
    never_run = (f"{prefix}text_projection", *([f"{prefix}transformer.resblocks.{layers - 1}."] if has_last else []))
    return {name: tensor for name, tensor in found.items() if not name.startswith(never_run)}


def from_ldm(encoder: TextEncoder, tensors: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The state of `model`, an `encoder.kind`, from what `heard` gives. UserError names all that does not fit."""
    if encoder.is_openclip:
        check_fit(f"the checkpoint's {encoder.part.prefix}*", tensors, _stacked(ldm.to_ldm(encoder.part, model)))
        tensors = _unstacked(tensors)
    return ldm.from_ldm(encoder.part, tensors, model)


def to_ldm(encoder: TextEncoder, model: nn.Module) -> dict[str, Tensor]:
    """The model's tensors as the original would save them, with stand-ins for what it wants and never uses."""
    prefix = encoder.part.prefix
    tensors = ldm.to_ldm(encoder.part, model)
    if not encoder.is_openclip:
        length = tensors[f"{prefix}transformer.text_model.embeddings.position_embedding.weight"].shape[0]
        return {**tensors, f"{prefix}transformer.text_model.embeddings.position_ids": torch.arange(length)[None]}
    tensors = _stacked(tensors)
    if encoder.kind is CLIPTextModel:
        tensors |= _never_run(prefix, tensors)
    return {**tensors, f"{prefix}logit_scale": torch.tensor(LOGIT_SCALE)}


def _never_run(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A last layer and a projection for SD 2.x's strict loading. What else runs them gets what it puts in.

    A block whose matrices are zero adds nothing to what passes it by.
    """
    layers = ldm.count(tensors, f"{prefix}transformer.resblocks.")
    model = f"{prefix}transformer.resblocks."
    last = {
        name.replace(f"{model}{layers - 1}.", f"{model}{layers}."): torch.zeros_like(tensor)
        for name, tensor in tensors.items()
        if name.startswith(f"{model}{layers - 1}.")
    }
    for norm in ("ln_1", "ln_2"):
        last[f"{model}{layers}.{norm}.weight"] += 1
    width = tensors[f"{prefix}ln_final.weight"]
    return {**last, f"{prefix}text_projection": torch.eye(len(width), dtype=width.dtype, device=width.device)}


def _stacked(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`attn.{q,k,v}_proj.weight` (d, d) -> `attn.in_proj_weight` (3 d, d), and so for the biases."""
    first, *others = STACKED
    stacked = {name: tensor for name, tensor in tensors.items() if not any(f".attn.{it}" in name for it in STACKED)}
    for name, tensor in tensors.items():
        if f".attn.{first}" in name:
            parts = [tensor, *(tensors[name.replace(first, other)] for other in others)]
            stacked[name.replace(first, STACK)] = torch.cat(parts)
    return stacked


def _unstacked(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The reverse of `_stacked`, by views."""
    apart = {name: tensor for name, tensor in tensors.items() if f".attn.{STACK}" not in name}
    for name, tensor in tensors.items():
        if f".attn.{STACK}" in name:
            apart |= {name.replace(STACK, it): part for it, part in zip(STACKED, tensor.chunk(3), strict=True)}
    return apart
