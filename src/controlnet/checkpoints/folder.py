"""A base on disk in diffusers layout, or on the hub: found, checked to be whole, loaded part by part, and saved.

Weights are read by `tensor_file` whether they are safetensors or pickled: no file is ever given to another loader.
"""

import copy
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from huggingface_hub import constants, snapshot_download
from torch import Tensor
from transformers import CLIPTextModel

from controlnet.atomic import write_atomically
from controlnet.checkpoints.contents import Family
from controlnet.checkpoints.parts import BaseParts, family_of, filled, structure, vae_dtype
from controlnet.checkpoints.strict import check_fit
from controlnet.checkpoints.tensor_file import open_tensors, write_tensors
from controlnet.checkpoints.text_encoders import TEXT_ENCODERS
from controlnet.checkpoints.tokenizer import find_tokenizers, load_tokenizer, save_tokenizer
from controlnet.choices import Prediction
from controlnet.errors import UserError

PARTS = ("unet", "vae", "scheduler", "tokenizer", "text_encoder")  # subfolders of a folder in diffusers layout
MODELS = ("unet", "vae", "text_encoder")  # of them, those that every base has weights for
SECOND_PARTS = ("tokenizer_2", "text_encoder_2")  # what SDXL has besides
CONFIGS = {
    "scheduler": "scheduler_config.json",
    "tokenizer": "tokenizer_config.json",
    "tokenizer_2": "tokenizer_config.json",
}
LAYOUT = f"a folder in diffusers layout: model_index.json and the subfolders {', '.join(PARTS)} (SDXL: also " + (
    f"{', '.join(SECOND_PARTS)}), with *.safetensors or *.bin in those of the models"
)
STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")  # of diffusers; of transformers, now and earlier
FORMATS = (("safetensors", ""), ("bin", ""), ("safetensors", ".fp16"), ("bin", ".fp16"))  # best first
# what is downloaded of a repository: the first that gives every model its weights
DOWNLOADS = (
    (["*.safetensors", "*.safetensors.index.json"], ["*.fp16*", "*non_ema*"]),
    (["*.bin", "*.bin.index.json"], ["*.fp16*", "*non_ema*"]),
    (["*.fp16*.safetensors", "*.index.fp16.json"], ["*non_ema*"]),
)
# names in folders that were saved by earlier versions of diffusers -> today's
RENAMED = {
    r"(attentions\.\d+)\.query\.": r"\1.to_q.",
    r"(attentions\.\d+)\.key\.": r"\1.to_k.",
    r"(attentions\.\d+)\.value\.": r"\1.to_v.",
    r"(attentions\.\d+)\.proj_attn\.": r"\1.to_out.0.",
}
# tensors that some folders hold and no model of ours has: numbers that are counted off, and CLIP's other half's scale
PASSED_OVER = r"(^|\.)position_ids$|^logit_scale$"
UNHEARD = r"^text_projection\.weight$"  # by `CLIPTextModel`, which ends before it
NOTHING = [None, None]
STABLE_DIFFUSION = {
    "_class_name": "StableDiffusionPipeline",
    "safety_checker": NOTHING,
    "feature_extractor": NOTHING,
    "image_encoder": NOTHING,
    "requires_safety_checker": False,
}
STABLE_DIFFUSION_XL = {
    "_class_name": "StableDiffusionXLPipeline",
    "feature_extractor": NOTHING,
    "image_encoder": NOTHING,
    "force_zeros_for_empty_prompt": True,
}
PIPELINES: dict[Family, dict[str, Any]] = {
    "sd1": STABLE_DIFFUSION,
    "sd2": STABLE_DIFFUSION,
    "sdxl": STABLE_DIFFUSION_XL,
}


def find_base(source: str) -> Path:
    """The file or folder of a base, downloaded if it is a hub id and not in the cache."""
    place = Path(source).expanduser()
    if place.exists():
        return place
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", source) or place.suffix in (".ckpt", ".safetensors"):
        raise UserError(
            f"base {source}: neither a file or folder that exists nor a hub id (owner/name); expected 'embedded', a "
            f"hub id, a single file (.safetensors or .ckpt) or {LAYOUT}"
        )
    try:
        return _download(source)
    except (OSError, ValueError) as error:
        raise UserError(
            f"base {source}: not in the cache {constants.HF_HUB_CACHE}, and the hub does not give it "
            f"({str(error).splitlines()[0]}). Where the hub can be reached, check the name, and log in if the base is "
            f"gated (hf auth login); elsewhere set HF_HOME or HF_HUB_CACHE to a cache that has it, or download it on "
            f"another machine (hf download {source} --local-dir FOLDER) and give FOLDER, which must be {LAYOUT}"
        ) from error


def fetch_part(repository: str, parts: Sequence[str], model: str) -> Path:
    """The folder that has these subfolders of a repository, one of them with a model's weights, if it has them.

    What the hub does not give, and is not in the cache, is not there.
    """
    try:
        return _download(repository, parts, [model])
    except (OSError, ValueError):
        return find_base(repository)


def _download(repository: str, parts: Sequence[str] = (*PARTS, *SECOND_PARTS), models: Sequence[str] = MODELS) -> Path:
    """Of the subfolders `parts`, of which `models` have weights."""
    for patterns, ignored in DOWNLOADS:
        wanted = [f"{part}/{name}" for part in parts for name in ("*.json", "*.txt", *patterns)]
        path = Path(
            snapshot_download(repository, allow_patterns=["model_index.json", *wanted], ignore_patterns=ignored)
        )
        if all(weight_files(path / model) for model in models):
            break
    return path


def check_layout(folder: Path) -> None:
    """UserError, naming all that is missing, unless `folder` holds a whole base."""
    if not (folder / "model_index.json").is_file():
        raise UserError(f"base {folder}: no model_index.json, found {_listing(folder)}; expected {LAYOUT}")
    is_sdxl = "text_encoder_2" in read_json(folder / "model_index.json")
    problems = []
    for part in (*PARTS, *SECOND_PARTS) if is_sdxl else PARTS:
        missing = [name for name in [CONFIGS.get(part, "config.json")] if not (folder / part / name).is_file()]
        if part not in CONFIGS and not weight_files(folder / part):
            missing.append("*.safetensors or *.bin")
        if missing:
            problems.append(f"{part}: no {' and no '.join(missing)}, found {_listing(folder / part)}")
    if problems:
        raise UserError(f"base {folder} lacks parts:\n  " + "\n  ".join(problems) + f"\nexpected {LAYOUT}")


def _listing(folder: Path) -> str:
    names = sorted(path.name for path in folder.glob("*"))
    return ", ".join([*names[:8], *([f"{len(names) - 8} more"] if names[8:] else [])]) or "nothing"


def weight_files(folder: Path) -> list[Path]:
    """The files that together hold a model's weights, the best kind that there is; none if there is none."""
    for suffix, variant in FORMATS:
        for stem in STEMS:
            if (whole := folder / f"{stem}{variant}.{suffix}").is_file():
                return [whole]
            if (index := folder / f"{stem}.{suffix}.index{variant}.json").is_file():
                return _shards(index)
    return []


def _shards(index: Path) -> list[Path]:
    """The files that an index names, which stand beside it."""
    names = {str(name) for name in dict(read_json(index).get("weight_map", {})).values()}
    if wrong := sorted(name for name in names if Path(name).name != name):
        raise UserError(f"{index}: names files outside its own folder ({wrong[0]}); replace it")
    return [index.parent / name for name in sorted(names)]


def load_base_folder(
    folder: Path, dtype: torch.dtype | None, tokenizer: Path | str | None = None, prediction: Prediction | None = None
) -> BaseParts:
    """A base from a folder in diffusers layout, in `dtype` or, if None, as it was saved.

    In float16 the VAE stays in float32. `tokenizer` and `prediction` are said by the user, over what the folder says.
    UserError says what is missing and what does not fit.
    """
    check_layout(folder)
    unet = load_part(UNet2DConditionModel, folder / "unet", dtype)
    vae = load_part(AutoencoderKL, folder / "vae", vae_dtype(dtype))
    family = family_of(unet)
    text_encoders = [
        load_part(encoder.kind, folder / part, dtype)
        for encoder, part in zip(TEXT_ENCODERS[family], ("text_encoder", "text_encoder_2"), strict=False)
    ]
    if tokenizer is None:
        parts = ("tokenizer", "tokenizer_2")[: len(text_encoders)]
        tokenizers = [load_tokenizer(folder / part) for part in parts]
    else:
        tokenizers = find_tokenizers(tokenizer, TEXT_ENCODERS[family])
    scheduler_config = {"prediction_type": "epsilon", **read_json(folder / "scheduler" / "scheduler_config.json")}
    if prediction is not None:
        scheduler_config["prediction_type"] = prediction
    base = BaseParts(unet, vae, text_encoders, tokenizers, scheduler_config, family)
    try:
        base.check()
    except UserError as error:
        raise UserError(f"base {folder}: {error}") from error
    return base


def load_part(kind: Any, folder: Path, dtype: torch.dtype | None) -> Any:
    """The model in `folder`, in half-precision files too; UserError if they are broken or do not fit it."""
    model = structure(kind, read_json(folder / "config.json"), folder)
    wanted = model.state_dict()
    found: dict[str, Tensor] = {}
    for path in weight_files(folder):
        found |= open_tensors(path).tensors
    found = _with_todays_names(found, wanted, kind)
    check_fit(str(folder), found, wanted)
    return filled(model, found, dtype)


def _with_todays_names(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], kind: Any) -> dict[str, Tensor]:
    """Those of the installed libraries, whichever version saved the files; without what no model of ours has."""
    renamed = {}
    for name, tensor in found.items():
        if re.search(PASSED_OVER, name) or (kind is CLIPTextModel and re.search(UNHEARD, name)):
            continue
        for earlier, today in RENAMED.items():
            name = re.sub(earlier, today, name)
        alternatives = (name, f"text_model.{name}", name.removeprefix("text_model."))
        renamed[next((it for it in alternatives if it in wanted), name)] = tensor
    return renamed


def save_base_folder(parts: BaseParts, out: Path, dtype: torch.dtype | None = None) -> None:
    """A folder in diffusers layout, which diffusers' own pipelines open; weights are cast to `dtype`.

    `model_index.json`, without which no folder is a base, comes last. UserError if the disk is full.
    """
    (out / "model_index.json").unlink(missing_ok=True)
    index: dict[str, Any] = {}
    for name, model in {"unet": parts.unet, "vae": parts.vae}.items():
        write_tensors(out / name / f"{STEMS[0]}.safetensors", model.state_dict(), {"format": "pt"}, dtype)
        model.save_config(out / name)
        index[name] = ["diffusers", type(model).__name__]
    for name, encoder in zip(("text_encoder", "text_encoder_2"), parts.text_encoders, strict=False):
        write_tensors(out / name / f"{STEMS[1]}.safetensors", encoder.state_dict(), {"format": "pt"}, dtype)
        config = copy.deepcopy(encoder.config)
        config.architectures, config.dtype = [type(encoder).__name__], dtype or encoder.dtype
        config.save_pretrained(out / name)
        index[name] = ["transformers", type(encoder).__name__]
    for name, tokenizer in zip(("tokenizer", "tokenizer_2"), parts.tokenizers, strict=False):
        save_tokenizer(tokenizer, out / name)
        index[name] = ["transformers", "CLIPTokenizer"]
    index["scheduler"] = ["diffusers", parts.scheduler_config.get("_class_name", "DDIMScheduler")]
    version = {"_diffusers_version": diffusers.__version__}
    _write_json(out / "scheduler" / CONFIGS["scheduler"], {**parts.scheduler_config, **version})
    _write_json(out / "model_index.json", {**PIPELINES[parts.family], **version, **index})


def write_unet(
    folder: Path, unet: UNet2DConditionModel, changed: Mapping[str, Tensor], dtype: torch.dtype | None
) -> None:
    """A U-Net's folder in diffusers layout, some of its tensors replaced. UserError if the disk is full."""
    tensors = {**unet.state_dict(), **changed}
    write_tensors(folder / f"{STEMS[0]}.safetensors", tensors, {"format": "pt"}, dtype)
    unet.save_config(folder)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    text = json.dumps(content, indent=2, sort_keys=True) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def read_json(path: Path) -> dict[str, Any]:
    """UserError unless the file holds a JSON object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: no valid JSON ({error}); replace the file") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: JSON, but no object with names; replace the file")
    return content
