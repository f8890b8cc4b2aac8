"""Models of transformers that stages are given by a name of the hub or a folder, and what tells one from another."""

from functools import cache
from pathlib import Path

from controlnet.checkpoints.models import sha256
from controlnet.errors import UserError

TEXTS = ["*.json", "*.txt", "*.model"]  # configuration and tokenizer
SAFETENSORS, PICKLES = "model*.safetensors", "pytorch_model*.bin"
SNAPSHOTS = "snapshots"  # in the hub's cache: a folder for each revision
DIGITS = 12  # of a revision or hash that are told


def model_folder(model: str) -> Path:
    """The folder of a model: itself, or the one of the hub's cache, downloaded if need be. UserError for none."""
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download

    try:
        fetched = Path(snapshot_download(model, allow_patterns=[*TEXTS, SAFETENSORS]))
        if not any(fetched.glob(SAFETENSORS)):
            fetched = Path(snapshot_download(model, allow_patterns=[*TEXTS, PICKLES]))
    except (OSError, ValueError) as error:
        raise UserError(
            f"model {model} is no folder, and the hub does not give it ({str(error).partition(chr(10))[0]}); where the "
            f"hub can be reached, run `hf download {model} --local-dir FOLDER`, bring FOLDER here and give it instead"
        ) from error
    return fetched


@cache
def revision(model: str) -> str:
    """The model's name with its revision on the hub, or with the beginning of the SHA-256 of a folder's weights."""
    folder = model_folder(model)
    if folder.parent.name == SNAPSHOTS:
        return f"{model}@{folder.name[:DIGITS]}"
    files = sorted([*folder.glob(SAFETENSORS), *folder.glob(PICKLES)])
    return "@".join([folder.name, *(sha256(file)[:DIGITS] for file in files)])
