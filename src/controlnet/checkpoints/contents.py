"""What a file of tensors is: told from its tensors' names and shapes and from what else the file says.

By structure, not by width, so narrow models belong to the family whose structure they have. One table says which
names tell which kind, `SIGNS`, and one what each kind is called and what to do about it, `KINDS`.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from torch import Tensor

from controlnet.choices import Prediction

Family = Literal["sd1", "sd2", "sdxl"]

FAMILIES: dict[Family, str] = {"sd1": "SD 1.x", "sd2": "SD 2.x", "sdxl": "SDXL"}
HEADER = "controlnet"  # where our own files say what they are
NOTHING: Mapping[str, str] = MappingProxyType({})

# part -> how the names of its tensors begin in a single file of the original's layout (LDM)
PREFIXES: dict[str, tuple[str, ...]] = {
    "unet": ("model.diffusion_model.",),
    "control": ("control_model.",),
    "vae": ("first_stage_model.",),
    "text_encoder": ("cond_stage_model.", "conditioner.embedders.0."),
    "text_encoder_2": ("conditioner.embedders.1.",),
    "ema": ("model_ema.",),
}
OTHER = "other"  # where a tensor is counted that belongs to no part: a schedule's buffers, position numbers
ADDITIONS = ("lora", "embedding")  # kinds that hold no whole network
DOWNSAMPLERS = {"sd1": 3, "sd2": 3, "sdxl": 2}  # one less than the family's levels
WIDTHS: dict[int, Family] = {768: "sd1", 1024: "sd2", 2048: "sdxl"}  # of the context, where no structure tells
# steps that Stability's checkpoints of SD 2.x had seen: 2-base and 2.1-base; 2, 2.1 and those made from them
GLOBAL_STEPS: dict[object, Prediction] = {
    875_000: "epsilon",
    110_000: "v_prediction",
    140_000: "v_prediction",
    220_000: "v_prediction",
}
PREDICTIONS: dict[str, Prediction] = {
    "epsilon": "epsilon",
    "eps": "epsilon",
    "v": "v_prediction",
    "v_prediction": "v_prediction",
}


@dataclass(frozen=True)
class Kind:
    """What a kind of file is called, and what to do with one where another kind is wanted."""

    title: str
    """With the family in place of {}."""
    remedy: str


KINDS: dict[str, Kind] = {
    "base": Kind("{} base", "give it as --base"),
    "base with control": Kind("{} base with a ControlNet", "give it as --base, or as --control for its ControlNet"),
    "control": Kind("ControlNet for {}", "give it as --control, with a base of its family as --base"),
    "unet": Kind("{} U-Net alone", "give the whole base as --base: with VAE and text encoder"),
    "vae": Kind("VAE", "a VAE is one part of a base: give the whole base as --base"),
    "text encoder": Kind("text encoder", "it is one part of a base: give the whole base as --base"),
    "lora": Kind("LoRA for {}", "a LoRA only changes the weights of a base: give the base that it was made for"),
    "control lora": Kind(
        "ControlNet for {} in LoRA form", "controls in LoRA form are not supported: take the full control"
    ),
    "union control": Kind("union ControlNet for {}", "unions are not supported: take the control of one condition"),
    "transformer control": Kind(
        "ControlNet for SD3 or Flux", "supported are controls for SD 1.x, SD 2.x and SDXL: take one of those"
    ),
    "t2i adapter": Kind("T2I-Adapter", "T2I-Adapters are not supported: take a ControlNet of the same condition"),
    "ip adapter": Kind("IP-Adapter", "IP-Adapters are not supported: take a ControlNet"),
    "embedding": Kind("textual inversion embedding for {}", "it is a word for a prompt, no model: take a base"),
    "refiner": Kind("SDXL refiner or another U-Net with added conditions", "take the SDXL base"),
    "sd3": Kind("SD3 model", "supported are SD 1.x, SD 2.x and SDXL: take a base of one of those"),
    "flux": Kind("Flux model", "supported are SD 1.x, SD 2.x and SDXL: take a base of one of those"),
    "annotator": Kind("annotator's network", "it is used through the annotators: `controlnet models list` names them"),
    "unknown": Kind("unknown model", "supported are bases and ControlNets of SD 1.x, SD 2.x and SDXL"),
}


@dataclass(frozen=True)
class Sign:
    """A kind of file that is one part alone, and patterns each of which matches one of its names."""

    kind: str
    layout: str
    part: str
    patterns: tuple[str, ...]


# the first whose patterns are all found; ^ and $ are a name's ends
SIGNS = (
    Sign("control lora", "webui", "control", (r"^lora_controlnet$|^lllite_",)),
    Sign("control lora", "webui", "control", (r"^input_hint_block\.", r"\.(down|up)$")),
    Sign("lora", "unknown", "lora", (r"lora_(down|up|A|B)\b|\.lora\.(down|up)\.|_lora\.|\.(hada|lokr|oft)_",)),
    Sign("transformer control", "diffusers", "control", (r"^controlnet_blocks\.\d",)),
    Sign("union control", "diffusers", "control", (r"^(control_add_embedding\.|task_embedding$)",)),
    Sign("flux", "ldm", "transformer", (r"(^|\.)double_blocks\.\d",)),
    Sign("flux", "diffusers", "transformer", (r"^single_transformer_blocks\.\d",)),
    Sign("sd3", "ldm", "transformer", (r"(^|\.)joint_blocks\.\d",)),
    Sign("sd3", "diffusers", "transformer", (r"^transformer_blocks\.\d+\.attn\.add_q_proj\.",)),
    Sign("ip adapter", "unknown", "adapter", (r"^ip_adapter\b",)),
    Sign("t2i adapter", "unknown", "adapter", (r"^(adapter\.)?body\.\d+\.(resnets\.\d+\.block1|block1|in_conv)\.",)),
    Sign("control", "controlnet", "control", (r"^hint_encoder\.", r"^zero_convs\.")),
    Sign("control", "webui", "control", (r"^input_hint_block\.", r"^zero_convs\.")),
    Sign("control", "diffusers", "control", (r"^controlnet_cond_embedding\.", r"^controlnet_down_blocks\.")),
    Sign("unet", "webui", "unet", (r"^input_blocks\.0\.0\.", r"^output_blocks\.")),
    Sign("unet", "diffusers", "unet", (r"^time_embedding\.", r"^down_blocks\.", r"^up_blocks\.")),
    Sign("vae", "webui", "vae", (r"^(encoder|decoder)\.mid\.attn_1\.",)),
    Sign("vae", "diffusers", "vae", (r"^encoder\.mid_block\.", r"^decoder\.mid_block\.")),
    Sign("text encoder", "diffusers", "text_encoder", (r"^(text_model\.)?encoder\.layers\.\d+\.self_attn\.",)),
    Sign("text encoder", "webui", "text_encoder", (r"^(model\.)?transformer\.resblocks\.\d",)),
    Sign("annotator", "unknown", "hed", (r"^block1\.convs\.0\.", r"^block5\.projection\.")),
    Sign("annotator", "unknown", "mlsd", (r"^(module\.)?backbone\.features\.", r"\bblock15\.conv1\.")),
    Sign("annotator", "unknown", "openpose", (r"\bconv4_4_CPM\.", r"\bMconv1_stage2_L1\.")),
    Sign("embedding", "unknown", "embedding", (r"^(emb_params|string_to_token)$",)),
    Sign("embedding", "unknown", "embedding", (r"^clip_g$", r"^clip_l$")),
    Sign("embedding", "unknown", "embedding", (r"^<[^>]+>$",)),
)


@dataclass(frozen=True)
class Contents:
    """What a file holds."""

    kind: str
    """One of `KINDS`."""
    layout: str
    """Whose names: ldm (a prefix for each part), webui (the original's without), diffusers, controlnet (ours)."""
    family: Family | None
    """None where the kind has none or nothing tells it."""
    prediction: Prediction | None
    """None where nothing tells it: so it is with many single files of SD 2.x."""
    parts: tuple[str, ...]
    """unet, vae, text_encoder, text_encoder_2, control, ema; of a kind that we don't read, its own word."""
    input_channels: int | None
    """Of the latent that the U-Net or control takes: 4; for inpainting 9, for editing 8. None if there is neither."""

    @property
    def is_inpainting(self) -> bool:
        return self.input_channels == 9

    @property
    def title(self) -> str:
        """For people: "SD 2.x base, v-prediction"."""
        family = FAMILIES[self.family] if self.family else "unknown family"
        told = self.family == "sd2" and self.prediction
        title = KINDS[self.kind].title.format(family) + (f", {self.prediction}" if told else "")
        return f"{title}, for inpainting" if self.is_inpainting else title


def recognise(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str] = NOTHING, others: Mapping[str, object] = NOTHING
) -> Contents:
    """What a file with these tensors is. `metadata`: of a safetensors header; `others`: of a pickled file's top level.

    Only names and shapes are looked at: nothing is read from a file that is memory-mapped.
    """
    kind, layout, parts = _kind(tensors, others)
    network = _network(tensors, layout, parts)
    family = _family_of_addition(tensors) if kind in ADDITIONS else _family_of_network(network)
    if family and not _has_the_levels_of(family, network):
        kind, family = ("refiner" if family == "sdxl" else "unknown"), None
    return Contents(kind, layout, family, _prediction(family, tensors, metadata, others), parts, _channels(network))


def part_of(name: str, contents: Contents) -> str:
    """Of one tensor of a file with these contents: one of its parts, or "other"."""
    if contents.layout == "controlnet" and name.startswith("decoder."):
        return "decoder"
    if contents.layout != "ldm":
        return contents.parts[0] if contents.parts else OTHER
    return next((part for part, prefixes in PREFIXES.items() if name.startswith(prefixes)), OTHER)


def wrong_kind(path: Path | str, contents: Contents, wanted: str) -> str:
    """The message of an error: `path` holds something else than `wanted`, such as "a base"."""
    return f"{path}: {contents.title}; expected {wanted}; {KINDS[contents.kind].remedy}"


def _kind(tensors: Mapping[str, Tensor], others: Mapping[str, object]) -> tuple[str, str, tuple[str, ...]]:
    """Kind, layout and parts."""
    names = "\n".join((*tensors, *others))
    for sign in SIGNS:
        if all(re.search(pattern, names, re.MULTILINE) for pattern in sign.patterns):
            return sign.kind, sign.layout, (sign.part,)
    present = {part for part, prefixes in PREFIXES.items() if any(name.startswith(prefixes) for name in tensors)}
    parts = tuple(part for part in PREFIXES if part in present)
    return _kind_of_ldm(present), "ldm" if parts else "unknown", parts


def _kind_of_ldm(parts: set[str]) -> str:
    match parts:
        case _ if {"unet", "control"} <= parts:
            return "base with control"
        case _ if "unet" in parts:
            return "base" if parts & {"vae", "text_encoder"} else "unet"
        case _ if "control" in parts:
            return "control"
        case _ if "vae" in parts:
            return "vae"
        case _:
            return "text encoder" if "text_encoder" in parts else "unknown"


def _network(tensors: Mapping[str, Tensor], layout: str, parts: tuple[str, ...]) -> dict[str, Tensor]:
    """The U-Net, else the control, without the part's prefix; empty if there is neither."""
    part = next((part for part in ("unet", "control") if part in parts), "")
    [prefix] = PREFIXES[part] if part and layout == "ldm" else ("",)
    return {name.removeprefix(prefix): x for name, x in tensors.items() if part and name.startswith(prefix)}


def _family_of_network(network: Mapping[str, Tensor]) -> Family | None:
    """SDXL adds text and sizes to its time; SD 2.x projects tokens by matrices, SD 1.x by 1x1 convolutions."""
    if any(re.match(r"(encoder\.embed_time\.)?(label_emb|add_embedding)\.", name) for name in network):
        return "sdxl"
    projections = [tensor.ndim for name, tensor in network.items() if name.endswith(".proj_in.weight")]
    if not projections:
        return None
    return "sd1" if projections[0] == 4 else "sd2"


def _family_of_addition(tensors: Mapping[str, Tensor]) -> Family | None:
    """Of a LoRA or an embedding: by what only SDXL has, else by the context's width."""
    if any(re.search(r"^lora_te2_|text_encoder_2|^clip_g$|transformer_blocks[._]1[._]", name) for name in tensors):
        return "sdxl"
    heard = r"attn2[._]to_k[._].*(lora_down|lora_A|lora\.down|down\.weight)|^emb_params$|^<[^>]+>$"
    widths = [tensor.shape[-1] for name, tensor in tensors.items() if re.search(heard, name) and tensor.ndim in (1, 2)]
    return WIDTHS.get(widths[0]) if widths else None


def _has_the_levels_of(family: Family, network: Mapping[str, Tensor]) -> bool:
    """True where there are no downsamplers to count, as in a control in LoRA form."""
    found = sum(name.endswith((".op.weight", ".downsamplers.0.conv.weight")) for name in network)
    return found in (0, DOWNSAMPLERS[family])


def _channels(network: Mapping[str, Tensor]) -> int | None:
    first = ("input_blocks.0.0.weight", "conv_in.weight", "encoder.conv_in.weight")
    return next((network[name].shape[1] for name in first if name in network and network[name].ndim == 4), None)


def _prediction(
    family: Family | None, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], others: Mapping[str, object]
) -> Prediction | None:
    """What the file itself says, else for SD 2.x what its number of steps tells; the other families predict noise."""
    said = str(_header(metadata, others).get("prediction_type", metadata.get("modelspec.prediction_type", "")))
    if said.lower() in PREDICTIONS:
        return PREDICTIONS[said.lower()]
    if "v_pred" in tensors:  # a marker that fine-tunes of SDXL carry
        return "v_prediction"
    if family == "sd2":
        step = others.get("global_step")
        return GLOBAL_STEPS.get(step) if isinstance(step, int) else None
    return "epsilon" if family else None


def _header(metadata: Mapping[str, str], others: Mapping[str, object]) -> Mapping[str, object]:
    """What our own files say of themselves; empty for files that aren't ours or are damaged."""
    try:
        header = json.loads(str(metadata.get(HEADER) or others.get(HEADER) or "{}"))
    except ValueError:
        return {}
    return header if isinstance(header, dict) else {}
