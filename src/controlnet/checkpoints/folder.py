"""A base on disk in diffusers layout, or on the hub: found, checked to be whole, and loaded part by part."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants, snapshot_download
from transformers import CLIPTokenizer
from transformers.utils import logging as transformers_logging

from controlnet.errors import UserError

PARTS = ("unet", "vae", "scheduler", "tokenizer", "text_encoder")  # subfolders of a folder in diffusers layout
SECOND_PARTS = ("tokenizer_2", "text_encoder_2")  # what SDXL has besides
CONFIGS = {
    "scheduler": "scheduler_config.json",
    "tokenizer": "tokenizer_config.json",
    "tokenizer_2": "tokenizer_config.json",
}
LAYOUT = f"a folder in diffusers layout: model_index.json and the subfolders {', '.join(PARTS)} (SDXL: also " + (
    f"{', '.join(SECOND_PARTS)}), with *.safetensors in those of the models"
)


def find_folder(source: str) -> Path:
    """The folder of a base, downloaded if it is a hub id and not in the cache."""
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists() or not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", source):
        kind = "a file" if folder.exists() else "neither a folder that exists nor a hub id (owner/name)"
        raise UserError(f"base {source}: {kind}; expected 'embedded', a hub id or {LAYOUT}")
    wanted = [f"{part}/{name}" for part in (*PARTS, *SECOND_PARTS) for name in ("*.json", "*.txt", "*.safetensors")]
    try:
        path = snapshot_download(
            source, allow_patterns=["model_index.json", *wanted], ignore_patterns=["*.fp16*", "*non_ema*"]
        )
    except (OSError, ValueError) as error:
        raise UserError(
            f"base {source}: not in the cache {constants.HF_HUB_CACHE}, and the hub does not give it "
            f"({str(error).splitlines()[0]}). Where the hub can be reached, check the name, and log in if the base is "
            f"gated (hf auth login); elsewhere set HF_HOME or HF_HUB_CACHE to a cache that has it, or download it on "
            f"another machine (hf download {source} --local-dir FOLDER) and give FOLDER, which must be {LAYOUT}"
        ) from error
    return Path(path)


def check_layout(folder: Path) -> None:
    """UserError, naming all that is missing, unless `folder` holds a whole base."""
    if not (folder / "model_index.json").is_file():
        raise UserError(f"base {folder}: no model_index.json, found {_listing(folder)}; expected {LAYOUT}")
    is_sdxl = "text_encoder_2" in read_json(folder / "model_index.json")
    problems = []
    for part in (*PARTS, *SECOND_PARTS) if is_sdxl else PARTS:
        expected = [CONFIGS[part]] if part in CONFIGS else ["config.json", "*.safetensors"]
        missing = [pattern for pattern in expected if not any((folder / part).glob(pattern))]
        if missing:
            problems.append(f"{part}: no {' and no '.join(missing)}, found {_listing(folder / part)}")
    if problems:
        raise UserError(
            f"base {folder} lacks parts:\n  " + "\n  ".join(problems) + f"\nexpected {LAYOUT}; pickled weights (.bin, "
            ".ckpt) are never read: download or save the base as safetensors"
        )


def _listing(folder: Path) -> str:
    names = sorted(path.name for path in folder.glob("*"))
    return ", ".join([*names[:8], *([f"{len(names) - 8} more"] if names[8:] else [])]) or "nothing"


def load_part(kind: Any, folder: Path, dtype: torch.dtype) -> Any:
    """The model in `folder`, in half-precision files too; UserError if they are broken or lack weights."""
    half_only = all(".fp16" in path.name for path in folder.glob("*.safetensors"))
    options = {"torch_dtype": dtype, "use_safetensors": True, "output_loading_info": True, "local_files_only": True}
    with _reading(folder, kind):
        model, report = kind.from_pretrained(folder, variant="fp16" if half_only else None, **options)
    wrong = [*report["missing_keys"], *report["mismatched_keys"]]
    if wrong:
        names = ", ".join(map(str, wrong[:3]))
        raise UserError(f"{folder}: {len(wrong)} weights are missing or of another shape ({names}); replace its files")
    return model


def load_tokenizer(folder: Path) -> CLIPTokenizer:
    """The tokenizer in `folder`, from a tokenizer.json or a vocab.json and merges.txt; UserError if it is broken."""
    with _reading(folder, CLIPTokenizer):
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)


@contextmanager
def _reading(folder: Path, kind: Any) -> Iterator[None]:
    """Every library's own errors as UserError, and no progress bar, which transformers draws however small the file."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    except Exception as error:
        raise UserError(f"{folder}: cannot be read as {kind.__name__} ({error}); replace its files") from error
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def read_json(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: no valid JSON ({error}); replace the file") from error
    return content
