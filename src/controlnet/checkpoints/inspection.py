"""What `controlnet inspect` tells of a file or folder of weights; nothing is loaded, only names, shapes and headers.

diffusers and transformers take seconds to import and most files need neither: so what needs them is imported late.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from controlnet.checkpoints import pickled
from controlnet.checkpoints.contents import HEADER, PREFIXES, Contents, part_of, recognise
from controlnet.checkpoints.mapped import map_file
from controlnet.checkpoints.pickled_values import CONTAINERS, Placeholder
from controlnet.checkpoints.tensor_file import TensorFile, open_tensors
from controlnet.errors import UserError

INDEX, NAME_IN_RUN = "model_index.json", "control.safetensors"
LONGEST_VALUE = 60  # characters of a value that is shown
Digest = Callable[[Path], str]


@dataclass(frozen=True)
class Part:
    """One model among the tensors."""

    tensors: int
    parameters: int
    dtypes: tuple[str, ...]
    """As torch calls them, the one with the most parameters first."""


@dataclass(frozen=True)
class FileOnDisk:
    path: Path
    format: str
    size: int
    """In bytes."""
    sha256: str | None
    """None if it was not asked for."""


@dataclass(frozen=True)
class Inspection:
    """All that is told of a file or folder."""

    path: Path
    contents: Contents
    files: tuple[FileOnDisk, ...]
    parts: Mapping[str, Part]
    said: Mapping[str, Any]
    """What the file says of itself in our own header; of a control, also what its public name tells."""
    metadata: Mapping[str, str]
    """What else stands in a safetensors header."""
    others: Mapping[str, str]
    """What a pickled file holds beside its tensors, in words."""
    placeholders: Mapping[str, int]
    """Classes and functions that a pickled file speaks of, none of which was loaded -> how often."""
    problems: tuple[str, ...]
    """Why it cannot be used as it is."""
    keys: Mapping[str, Tensor]
    """All tensors, by the file's names; in a folder behind the subfolder's."""

    def to_json(self, with_keys: bool = False) -> str:
        told = asdict(replace(self, keys={}))
        contents = told.pop("contents") | {"title": self.contents.title, "is_inpainting": self.contents.is_inpainting}
        keys = {name: {"shape": list(x.shape), "dtype": _name(x.dtype)} for name, x in self.keys.items()}
        del told["keys"]
        return json.dumps({**contents, **told, **({"keys": keys} if with_keys else {})}, indent=2, default=str)


def inspect(path: Path, digest: Digest | None = None) -> Inspection:
    """What `path` is: a file of weights, a diffusers folder of a base or of one model, or a run's folder.

    `digest` computes a file's SHA-256, if that is wanted. UserError, with the cause and the remedy, if it is no model.
    """
    if (path / INDEX).is_file():
        return _inspect_base(path, digest)
    if not path.is_dir():
        return _inspect_files(path, [path], digest)
    if (path / NAME_IN_RUN).is_file():
        return inspect(path / NAME_IN_RUN, digest)
    from controlnet.checkpoints.folder import weight_files

    files = weight_files(path)
    if not files:
        raise UserError(
            f"{path}: a folder without {INDEX} (as a base has), without weights (as a control in diffusers layout has) "
            f"and without {NAME_IN_RUN} (as a run has); give such a folder or a file"
        )
    return _inspect_files(path, files, digest)


def _inspect_files(path: Path, paths: list[Path], digest: Digest | None) -> Inspection:
    """Of one model, or of what a single file holds."""
    opened = [open_tensors(each) for each in paths]
    tensors = {name: tensor for file in opened for name, tensor in file.tensors.items()}
    first = opened[0]
    contents = recognise(tensors, first.metadata, first.others)
    said, problems = _said(path, contents, first)
    return Inspection(
        path,
        contents,
        tuple(_on_disk(each, digest) for each in paths),
        _parts(tensors, lambda name: part_of(name, contents)),
        said,
        {name: text for name, text in first.metadata.items() if not name.startswith(HEADER)},
        {name: describe(value) for name, value in first.others.items() if not name.startswith(HEADER)},
        dict(Counter(_placeholders(first.others))),
        problems,
        tensors,
    )


def _inspect_base(folder: Path, digest: Digest | None) -> Inspection:
    """A base in diffusers layout: its family is its U-Net's, its prediction its scheduler's."""
    from controlnet.checkpoints.folder import check_layout, read_json, weight_files

    paths = {part.name: files for part in sorted(folder.iterdir()) if part.is_dir() and (files := weight_files(part))}
    tensors = {
        f"{part}/{name}": tensor
        for part, files in paths.items()
        for file in files
        for name, tensor in open_tensors(file).tensors.items()
    }
    unet = recognise(
        {name.removeprefix("unet/"): tensor for name, tensor in tensors.items() if name.startswith("unet/")}
    )
    scheduler = folder / "scheduler" / "scheduler_config.json"
    prediction = read_json(scheduler).get("prediction_type", "epsilon") if scheduler.is_file() else None
    contents = replace(unet, kind="base", layout="diffusers", prediction=prediction, parts=tuple(paths))
    return Inspection(
        folder,
        contents,
        tuple(_on_disk(file, digest) for files in paths.values() for file in files),
        _parts(tensors, lambda name: name.partition("/")[0]),
        *({}, {}, {}, {}),
        _problem(lambda: check_layout(folder)),
        tensors,
    )


def describe(value: object) -> str:
    """Something beside the tensors, in a few words."""
    match value:
        case Placeholder():
            return f"an object of {value.name}"
        case Tensor():
            return f"a tensor {tuple(value.shape)}"
        case dict() | list() | tuple() | set():
            return f"a {type(value).__name__} of {len(value):,}"
        case _:
            text = repr(value)
            return text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 3] + "..."


def _on_disk(path: Path, digest: Digest | None) -> FileOnDisk:
    mapped = map_file(path)
    match (pickled.is_zip(mapped), pickled.is_legacy(mapped)):
        case (True, _):
            kind = "pickle in a zip"
        case (_, True):
            kind = "legacy pickle"
        case _:
            kind = "safetensors"
    return FileOnDisk(path, kind, len(mapped), digest(path) if digest else None)


def _parts(tensors: Mapping[str, Tensor], part: Callable[[str], str]) -> dict[str, Part]:
    grouped: dict[str, list[Tensor]] = {}
    for name, tensor in tensors.items():
        grouped.setdefault(part(name), []).append(tensor)
    return {name: _part(grouped[name]) for name in sorted(grouped, key=[*PREFIXES, *sorted(grouped)].index)}


def _part(tensors: list[Tensor]) -> Part:
    counts: Counter[str] = Counter()
    for tensor in tensors:
        counts[_name(tensor.dtype)] += tensor.numel()
    return Part(len(tensors), counts.total(), tuple(name for name, _ in counts.most_common()))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _said(path: Path, contents: Contents, file: TensorFile) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What is known of a control, or what our header says of another model; and what is wrong with it."""
    if contents.kind == "control" or (contents.kind == "base with control" and contents.family):
        from controlnet.checkpoints.control_formats import open_control

        try:
            return asdict(open_control(path).metadata), ()
        except UserError as error:
            return {}, (str(error),)
    try:
        header = json.loads(file.header.get(HEADER, "{}"))
    except ValueError as error:
        return {}, (f"{path}: its header is damaged ({error}); use another copy of the file",)
    return dict(header) if isinstance(header, Mapping) else {}, ()


def _problem(check: Callable[[], None]) -> tuple[str, ...]:
    try:
        check()
    except UserError as error:
        return (str(error),)
    return ()


def _placeholders(value: object) -> Iterator[str]:
    """Names of all placeholders in a value of containers in containers."""
    waiting = [value]
    while waiting:
        it = waiting.pop()
        if isinstance(it, Placeholder):
            yield it.name
        elif isinstance(it, Mapping):
            waiting += [*it, *it.values()]
        elif isinstance(it, CONTAINERS):
            waiting += it
