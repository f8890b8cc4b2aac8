"""Pairs encoded once: the VAE's posterior of every picture, the context of every distinct prompt, hints as uint8.

The noise of the posterior and the dropping of prompts come after the cache, from each sample's own draw, so the cache
changes nothing in what is learned. On disk it is one file per content: other pictures or another base, another file.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from controlnet.atomic import write_atomically
from controlnet.base import Base
from controlnet.control import Prompt
from controlnet.data.pairs import MANIFEST, Pairs
from controlnet.errors import UserError
from controlnet.training.loss import Batch

VERSION = 1  # of what is stored; another number, another file
TOLERATED = 0.01  # share of pairs that may be unusable
TOLD = 10  # unusable pairs named in an error
ENCODED_AT_ONCE = 32
HINT_BYTES = 2 * 2**30  # hints beyond this are decoded anew at each visit instead of kept in memory
ROUNDING = 1e-3  # by which float pictures may leave their range

T = TypeVar("T")


class Dataset(Protocol):
    """What can be trained on: map-style, each item with `jpg` (H, W, 3) in [-1, 1], `txt`, `hint` in [0, 1]."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


@dataclass(frozen=True)
class Encoded:
    """n usable pairs of one size. `samples[row]` is a row's index in the data set; the last prompt is the empty one."""

    mean_nchw: Tensor
    deviation_nchw: Tensor
    prompts: Prompt
    prompt_n: Tensor
    captions: list[str]
    samples: list[int]
    hint_of: Callable[[int], NDArray[np.uint8]]
    hint_channels: int
    defects: list[str]

    def __len__(self) -> int:
        return len(self.samples)

    def batch(self, rows: Sequence[int], empties_prompt_b: Tensor) -> Batch:
        """The pairs of these rows, on the CPU; the emptied ones with the empty prompt."""
        which = torch.as_tensor(rows)
        empty = len(self.prompts.context_btd) - 1
        prompt = self.prompts[torch.where(empties_prompt_b, empty, self.prompt_n[which])]
        hints_bhwc = torch.from_numpy(np.stack([self.hint_of(row) for row in rows]))
        hint_bchw = hints_bhwc.permute(0, 3, 1, 2).float() / 255
        return Batch(self.mean_nchw[which], self.deviation_nchw[which], prompt, hint_bchw)

    def split(self, count: int) -> tuple["Encoded", "Encoded"]:
        """All but the last `count` rows, and these."""
        cut = len(self) - count
        return self._rows(0, cut), self._rows(cut, len(self))

    def _rows(self, start: int, end: int) -> "Encoded":
        hint_of = self.hint_of
        return replace(
            self,
            mean_nchw=self.mean_nchw[start:end],
            deviation_nchw=self.deviation_nchw[start:end],
            prompt_n=self.prompt_n[start:end],
            captions=self.captions[start:end],
            samples=self.samples[start:end],
            hint_of=lambda row: hint_of(start + row),
        )


def encode(base: Base, dataset: Dataset, folder: Path, content: str, console: Console) -> Encoded:
    """The pairs as a training needs them, from the cache in `folder` if it has them.

    `content` is the data set's `fingerprint`. Unusable pairs are left out and named; UserError when they are more than
    one in a hundred, or when nothing is left.
    """
    key = hashlib.sha256(f"{VERSION} {base.hash()} {base.dtype} {content}".encode()).hexdigest()[:16]
    path = folder / f"encoded-{key}.safetensors"
    if not path.exists():
        tensors, told = _encode(base, dataset, console)
        write_atomically(path, lambda temporary: save_file(tensors, temporary, {"told": json.dumps(told)}))
    encoded = _load(path, dataset)
    for defect in encoded.defects:
        console.print(f"skipped: {defect}", style="yellow", markup=False)
    if encoded.defects:
        console.print(f"{len(encoded.defects)} of {len(dataset)} pairs cannot be used and are skipped", style="yellow")
    return encoded


def fingerprint(dataset: Dataset) -> str:
    """SHA-256 of a data set's content: of the files of a folder, of every item of another."""
    digest = hashlib.sha256()
    for part in _content_of_files(dataset) if isinstance(dataset, Pairs) else _content_of_items(dataset):
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()


def _content_of_files(pairs: Pairs) -> Iterator[bytes]:
    yield (pairs.folder / MANIFEST).read_bytes()
    for row in pairs.rows:
        for path in (pairs.folder / row.source, pairs.folder / row.target):
            yield path.read_bytes() if path.is_file() else b""


def _content_of_items(dataset: Dataset) -> Iterator[bytes]:
    for index in range(len(dataset)):
        item = dataset[index]
        yield str(item["txt"]).encode()
        for pixels in (np.asarray(item["jpg"], np.float32), np.asarray(item["hint"], np.float32)):
            yield f"{pixels.shape}".encode() + pixels.tobytes()


def held_out_count(pairs: int) -> int:
    """The last 2 percent, from 16 up to 64, but never more than a quarter of the pairs."""
    return max(1, min(max(16, min(64, pairs // 50)), pairs // 4))


def _encode(base: Base, dataset: Dataset, console: Console) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What the cache stores: tensors, and a JSON of the rest."""
    reader = _Reader(dataset, base)
    means, deviations, hints, captions, samples = [], [], [], [], []
    kept = True
    for chunk in _chunks(track(reader, "encoding pictures", len(dataset), console=console), ENCODED_AT_ONCE):
        pixels_bhwc = torch.from_numpy(np.stack([pair.picture for pair in chunk]))
        mean_bchw, deviation_bchw = base.encode_moments(pixels_bhwc.permute(0, 3, 1, 2))
        means.append(mean_bchw.cpu())
        deviations.append(deviation_bchw.cpu())
        captions += [pair.caption for pair in chunk]
        samples += [pair.sample for pair in chunk]
        kept = kept and chunk[0].hint.nbytes * len(dataset) <= HINT_BYTES
        hints += [torch.from_numpy(pair.hint) for pair in chunk] if kept else []
    if not samples:
        raise UserError("the data has no pair that can be used; `controlnet data check FOLDER` lists what is wrong")
    prompts, prompt_n = _encode_prompts(base, captions, chunk[0].picture.shape, console)
    tensors = {"mean": torch.cat(means), "deviation": torch.cat(deviations), "prompt_of": prompt_n}
    tensors |= {"context": prompts.context_btd} | {f"added.{name}": x for name, x in (prompts.added or {}).items()}
    tensors |= {"hints": torch.stack(hints)} if kept else {}
    told = {
        "captions": captions,
        "samples": samples,
        "defects": reader.defects,
        "hint_channels": chunk[0].hint.shape[2],
    }
    return {name: tensor.contiguous() for name, tensor in tensors.items()}, told


def _load(path: Path, dataset: Dataset) -> Encoded:
    try:
        with safe_open(path, framework="pt") as file:
            told = json.loads(file.metadata()["told"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no dict
    except Exception as error:  # safetensors has its own type, and what it lets through is broken otherwise
        raise UserError(f"{path}: broken cache ({error}); remove the file, it will be made anew") from error
    added = {name.removeprefix("added."): x for name, x in tensors.items() if name.startswith("added.")}
    samples = told["samples"]
    if "hints" in tensors:
        hints_nhwc = tensors["hints"].numpy()
        hint_of: Callable[[int], NDArray[np.uint8]] = hints_nhwc.__getitem__
    else:
        hint_of = lambda row: _to_uint8(dataset[samples[row]]["hint"])  # noqa: E731  # one of two ways
    prompts = Prompt(tensors["context"], added or None)
    return Encoded(
        tensors["mean"],
        tensors["deviation"],
        prompts,
        tensors["prompt_of"],
        told["captions"],
        samples,
        hint_of,
        told["hint_channels"],
        told["defects"],
    )


def _encode_prompts(
    base: Base, captions: list[str], shape_hwc: tuple[int, ...], console: Console
) -> tuple[Prompt, Tensor]:
    """Contexts of the distinct prompts and, last, of the empty one; and which is whose."""
    distinct = sorted(set(captions) - {""})
    number = {caption: index for index, caption in enumerate([*distinct, ""])}
    # all prompts of a call get as many tokens as its longest: so the longest of all takes part in each
    longest = max([*distinct, ""], key=lambda caption: len(base.tokenizers[0](caption).input_ids))
    parts = []
    for chunk in _chunks(track([*distinct, ""], "encoding prompts", console=console), ENCODED_AT_ONCE):
        prompt = base.encode_prompts([*chunk, longest], size_hw=(shape_hwc[0], shape_hwc[1]))[: len(chunk)]
        parts.append(prompt.to(torch.device("cpu"), base.dtype))
    return Prompt.cat(parts), torch.tensor([number[caption] for caption in captions])


@dataclass(frozen=True)
class _Pair:
    sample: int
    picture: NDArray[np.float32]
    hint: NDArray[np.uint8]
    caption: str


class _Reader:
    """The usable pairs of a data set, in order; collects the defects of the others, UserError when they are many."""

    def __init__(self, dataset: Dataset, base: Base) -> None:
        self.dataset = dataset
        self.multiple = base.factor * 2 ** (len(base.unet.config.block_out_channels) - 1)
        self.defects: list[str] = []
        self.shape: tuple[int, ...] | None = None  # height, width, channels of pictures, channels of hints

    def __iter__(self) -> Iterator[_Pair | None]:
        """One item per sample, None for an unusable one."""
        for sample in range(len(self.dataset)):
            pair = self._read(sample)
            if isinstance(pair, str):
                self._skip(f"pair {sample}: {pair}")
                yield None
            else:
                yield pair

    def _read(self, sample: int) -> _Pair | str:
        """The pair, or what is wrong with it."""
        try:
            item = self.dataset[sample]
        except UserError as error:
            return str(error)
        picture, hint = np.asarray(item["jpg"], np.float32), np.asarray(item["hint"], np.float32)
        _check_range("jpg", picture, -1, 1)
        _check_range("hint", hint, 0, 1)
        if hint.shape[:2] != picture.shape[:2]:
            return f"its hint has {_size(hint)} pixels, the picture {_size(picture)}; make them one size"
        if self.shape is None:
            self._accept(picture.shape, hint.shape)
        if (*picture.shape, hint.shape[2]) != self.shape:
            found = f"{_size(picture)}, {hint.shape[2]} hint channels"
            return f"{found}; the pairs before it have {self._expected()}; resize it"
        return _Pair(sample, picture, _to_uint8(hint), str(item["txt"]))

    def _accept(self, picture: tuple[int, ...], hint: tuple[int, ...]) -> None:
        """Take the first pair's shape as that of all."""
        height, width = picture[:2]
        if height % self.multiple or width % self.multiple:
            raise UserError(
                f"pictures are {width}x{height}; this base needs sides that are multiples of {self.multiple}: "
                "resize the pictures and their hints"
            )
        self.shape = (*picture, hint[2])

    def _expected(self) -> str:
        height, width, _, channels = self.shape or (0, 0, 0, 0)
        return f"{width}x{height}, {channels} hint channels"

    def _skip(self, defect: str) -> None:
        self.defects.append(defect)
        allowed = int(TOLERATED * len(self.dataset))
        if len(self.defects) > allowed:
            named = "\n".join(f"  {defect}" for defect in self.defects[:TOLD])
            raise UserError(
                f"{len(self.defects)} unusable pairs so far, of {len(self.dataset)}; at most {allowed} are skipped:\n"
                f"{named}\nmend or remove them; `controlnet data check FOLDER` lists all"
            )


def _check_range(name: str, pixels: NDArray[np.float32], low: float, high: float) -> None:
    """A user's data set that mistakes the range is stopped at once: it would train, and never obey."""
    least, most = float(pixels.min()), float(pixels.max())
    if not (low - ROUNDING <= least and most <= high + ROUNDING):
        raise UserError(f"`{name}` has values from {least:.3g} to {most:.3g}; expected [{low}, {high}]")


def _size(pixels_hwc: NDArray[np.float32]) -> str:
    return f"{pixels_hwc.shape[1]}x{pixels_hwc.shape[0]}"


def _to_uint8(hint: NDArray[np.float32]) -> NDArray[np.uint8]:
    return np.rint(np.asarray(hint) * 255).astype(np.uint8)


def _chunks(items: Iterable[T | None], size: int) -> Iterator[list[T]]:
    """Lists of `size`, the last perhaps shorter; None is left out."""
    chunk: list[T] = []
    for item in items:
        if item is not None:
            chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
