"""The tokenizers of a base. Single files carry none, but CLIP's is the same for all, and only padding differs.

CLIP was taught with prompts padded by its end token, OpenCLIP with prompts padded by the number 0: the first word.
"""

import copy
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import constants, snapshot_download
from transformers import CLIPTokenizer

from controlnet.checkpoints.parts import reading
from controlnet.checkpoints.text_encoders import TextEncoder
from controlnet.errors import UserError

FILES = ("tokenizer.json", "tokenizer_config.json")
OLDER_FILES = ("vocab.json", "merges.txt", "special_tokens_map.json")
OPENCLIP_PADDING = "!"
PROMPT_LENGTH = 77  # of CLIP, in tokens, with start and end
CLIP_VOCABULARY = 49_408
# repository and folder in it; the first that is in the hub's cache is taken, else the first is downloaded
KNOWN = (
    ("openai/clip-vit-large-patch14", "."),
    ("stable-diffusion-v1-5/stable-diffusion-v1-5", "tokenizer"),
    ("stabilityai/stable-diffusion-xl-base-1.0", "tokenizer"),
    ("stabilityai/stable-diffusion-2-1", "tokenizer"),
    ("stabilityai/stable-diffusion-2-1-base", "tokenizer"),
    ("CompVis/stable-diffusion-v1-4", "tokenizer"),
    ("runwayml/stable-diffusion-v1-5", "tokenizer"),
    ("laion/CLIP-ViT-H-14-laion2B-s32B-b79K", "."),
    ("laion/CLIP-ViT-bigG-14-laion2B-39B-b160k", "."),
)


def load_tokenizer(folder: Path, **options: Any) -> CLIPTokenizer:
    """The tokenizer in `folder`, from a tokenizer.json or a vocab.json and merges.txt; UserError if it is broken."""
    with reading(folder, "CLIPTokenizer"):
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True, **options)


def find_tokenizers(
    given: Path | str | None, text_encoders: Sequence[TextEncoder], packed: Sequence[Mapping[str, str]] = ()
) -> list[CLIPTokenizer]:
    """One for each of a single file's text encoders: from the folder that the user gives, else `packed` in the file,
    else from the hub or its cache. UserError, saying what to put where, if there is none."""
    if given is None and len(packed) == len(text_encoders):
        return [_unpacked(each) for each in packed]
    folders = _given_folders(Path(given).expanduser()) if given is not None else [_known_folder()]
    return [
        _padded(folders[min(place, len(folders) - 1)], encoder.is_openclip)
        for place, encoder in enumerate(text_encoders)
    ]


def packed(tokenizers: Sequence[CLIPTokenizer]) -> list[dict[str, str]]:
    """Their files' contents by name, for a header; nothing for CLIP's own, which everybody has."""
    if all(len(tokenizer) == CLIP_VOCABULARY for tokenizer in tokenizers):
        return []
    return [_packed(tokenizer) for tokenizer in tokenizers]


def save_tokenizer(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """`FILES`, without how this one was found and last used, which transformers would write down."""
    clean = copy.deepcopy(tokenizer)
    clean.backend_tokenizer.no_truncation()
    clean.backend_tokenizer.no_padding()
    for name in ("is_local", "local_files_only"):
        clean.init_kwargs.pop(name, None)
    clean.save_pretrained(folder)


def _packed(tokenizer: CLIPTokenizer) -> dict[str, str]:
    with TemporaryDirectory() as folder:
        save_tokenizer(tokenizer, Path(folder))
        return {name: (Path(folder) / name).read_text(encoding="utf-8") for name in FILES}


def _unpacked(contents: Mapping[str, str]) -> CLIPTokenizer:
    with TemporaryDirectory() as folder, reading("the tokenizer in the file's header", "CLIPTokenizer"):
        for name in FILES:
            (Path(folder) / name).write_text(contents[name], encoding="utf-8")
        return load_tokenizer(Path(folder))


def _padded(folder: Path, is_openclip: bool) -> CLIPTokenizer:
    tokenizer = load_tokenizer(folder)
    tokenizer.model_max_length = min(tokenizer.model_max_length, PROMPT_LENGTH)  # where unset, it is without end
    tokenizer.pad_token = OPENCLIP_PADDING if is_openclip else tokenizer.eos_token
    return tokenizer


def _given_folders(given: Path) -> list[Path]:
    """`given` itself, or the tokenizers of the base in diffusers layout there; a file stands for its folder."""
    folder = given.parent if given.is_file() else given
    candidates = ([folder], [folder / "tokenizer", folder / "tokenizer_2"], [folder / "tokenizer"])
    for folders in candidates:
        if all(_holds_tokenizer(each) for each in folders):
            return folders
    raise UserError(
        f"tokenizer {given}: {'nothing in it' if folder.is_dir() else 'no such folder'} can be read as one; expected a "
        "folder with tokenizer.json, or with vocab.json and merges.txt, or one in diffusers layout with a tokenizer/"
    )


def _holds_tokenizer(folder: Path) -> bool:
    return (folder / "tokenizer.json").is_file() or all(
        (folder / name).is_file() for name in ("vocab.json", "merges.txt")
    )


def _known_folder() -> Path:
    """Of a known repository, in the hub's cache or from the hub."""
    for offline in (True, False):
        for repository, folder in KNOWN if offline else KNOWN[:1]:
            names = [re.sub(r"^\./", "", f"{folder}/{name}") for name in (*FILES, *OLDER_FILES)]
            try:
                path = Path(snapshot_download(repository, allow_patterns=names, local_files_only=offline)) / folder
            except (OSError, ValueError):
                continue
            if _holds_tokenizer(path):
                return path
    repository = KNOWN[0][0]
    raise UserError(
        "a single file carries no tokenizer; looked for one in the cache "
        f"{constants.HF_HUB_CACHE} ({', '.join(name for name, _ in KNOWN[:4])} ...) and on the hub. Give one by "
        f"--tokenizer FOLDER: of any Stable Diffusion in diffusers layout, or what `hf download {repository} "
        f"{' '.join((*FILES, *OLDER_FILES))} --local-dir FOLDER` fetches where the hub can be reached"
    )
