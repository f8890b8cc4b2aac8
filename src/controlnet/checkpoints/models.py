"""Public models by name: looked for in the hub's cache, downloaded where that is asked for.

Which there are is told by `model_table`.
"""

import hashlib
from collections.abc import Callable
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from controlnet.checkpoints.hub import hub_file
from controlnet.checkpoints.model_table import BASES, CONTROLS, MODELS, Model
from controlnet.errors import UserError

if TYPE_CHECKING:
    from controlnet.checkpoints.contents import Family

CONFIG = "config.json"
WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")  # the first that is published
CHUNK = 1 << 22


def find_model(name: str, family: "Family | None" = None) -> Model:
    """The model called `name`, or for a condition ("canny") the first of its controls, of `family` if one is asked for.

    UserError if there is none.
    """
    if name in MODELS:
        return MODELS[name]
    if found := _with_condition(name, family):
        return found[0]
    conditions = {str(model.condition) for model in CONTROLS.values()}
    near = get_close_matches(name, [*MODELS, *conditions], n=1)
    remedy = f"did you mean {near[0]}?" if near else "`controlnet models list` tells the names"
    raise UserError(f"there is no public model called {name!r}; expected a name or a condition of the table; {remedy}")


def resolve_base(name: str) -> str | None:
    """What to open for the base called `name`: a hub id, or the path of a file in the hub's cache.

    None if the table has no such base. UserError if it is a single file and not in the cache.
    """
    if name not in BASES:
        return None
    return str(locate(name)) if BASES[name].file else BASES[name].repository


def resolve_control(name: str, family: "Family | None" = None) -> Path | None:
    """The file, or the diffusers folder, in the hub's cache of the control called `name`; or of that condition.

    None if the table has neither. UserError if it is not in the cache: what to fetch, or what to put where.
    """
    is_known = name in CONTROLS or _with_condition(name, family)
    return locate(name, family) if is_known else None


def locate(name: str, family: "Family | None" = None) -> Path:
    """The file or folder in the hub's cache of a model by its name or condition; UserError if it is not there."""
    models = [MODELS[name]] if name in MODELS else _with_condition(name, family) or [find_model(name)]
    for model in models:
        if found := cached(model):
            return found
    raise UserError(
        f"{name}: {models[0]} is not in the hub's cache; `controlnet models fetch {name}` gets it. "
        + _offline(models[0])
    )


def cached(model: Model) -> Path | None:
    """The file or folder of a model in the hub's cache."""
    if model.file:
        return in_cache(model.repository, model.file, model.revision)
    for name in ("model_index.json",) if model.kind == "base" else WEIGHTS:
        if found := in_cache(model.repository, name, model.revision):
            return found.parent
    return None


def in_cache(repository: str, file: str, revision: str = "main") -> Path | None:
    """A file in the hub's cache, of that revision or else of the newest that was ever fetched."""
    from huggingface_hub import try_to_load_from_cache

    for each in dict.fromkeys((revision, "main")):
        found = try_to_load_from_cache(repository, file, revision=each)
        if isinstance(found, str):
            return Path(found)
    return None


def fetch(model: Model) -> Path:
    """A model's file or folder, downloaded if it is not in the hub's cache; the hub's library shows progress.

    UserError if the hub does not give it, or gives a file of another SHA-256.
    """
    if model.kind == "base" and not model.file:
        from controlnet.checkpoints.folder import find_base

        return find_base(model.repository)
    found = cached(model)
    if found is None:
        try:
            found = _download(model)
        except (OSError, ValueError) as error:
            raise UserError(
                f"{model}: not in the hub's cache, and the hub {_reason(error)}. {_offline(model)}"
            ) from error
    if model.sha256 and (digest := sha256(found)) != model.sha256:
        raise UserError(
            f"{found}: its SHA-256 is {digest}, expected {model.sha256} for {model}; the download was damaged or the "
            "publisher replaced it: remove the file and fetch it again"
        )
    return found


def sha256(path: Path, progress: Callable[[int, int], None] | None = None) -> str:
    """Of a file, in hexadecimal; `progress` gets the bytes done and in all."""
    digest, report, total = hashlib.sha256(), progress or (lambda done, total: None), path.stat().st_size
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            report(file.tell(), total)
    return digest.hexdigest()


def _with_condition(condition: str, family: "Family | None") -> list[Model]:
    return [model for model in CONTROLS.values() if model.condition == condition and family in (None, model.family)]


def _download(model: Model) -> Path:
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    download = partial(hub_file, model.repository, revision=model.revision)

    if model.file:
        return download(model.file)
    download(CONFIG)
    first, second = WEIGHTS
    try:
        return download(first).parent
    except LocalEntryNotFoundError:
        raise
    except EntryNotFoundError:
        return download(second).parent


def _reason(error: Exception) -> str:
    from huggingface_hub.errors import LocalEntryNotFoundError

    is_unreachable = isinstance(error, LocalEntryNotFoundError)
    return "cannot be reached" if is_unreachable else f"does not give it ({str(error).splitlines()[0]})"


def _offline(model: Model) -> str:
    """What to do where the hub cannot be reached."""
    from huggingface_hub.constants import HF_HUB_CACHE

    what = f"{model.repository} {model.file}" if model.file else model.repository
    result = f"FOLDER/{model.file}" if model.file else "FOLDER"
    return (
        f"Without a network: on another machine run `hf download {what} --local-dir FOLDER`, bring FOLDER here and "
        f"give {result} as --{model.kind}; or bring that machine's cache to {HF_HUB_CACHE}"
    )
