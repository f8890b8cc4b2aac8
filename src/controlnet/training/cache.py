"""Pairs encoded once: the VAE's posterior of every picture and the context of every distinct prompt, on disk.

The noise of the posterior and the dropping of prompts come after the cache, from each sample's own draw, so the cache
changes nothing in what is learned. What is stored is found by its content: the picture's bytes, what is seen of it, the
weights that encode it. So trainings share a cache, a killed one goes on where it was, and what changed is made anew. A
data set may bring a cache of its own, in a folder of that name: what is there is not made again.
"""

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from controlnet.base import Base, tokenize, weights_hash
from controlnet.data.pairs import Pairs
from controlnet.data.prefetch import prefetched
from controlnet.errors import UserError
from controlnet.training.encoded import (
    ENCODED_AT_ONCE,
    Encoded,
    encode_pictures,
    encode_texts,
    latent_key,
    variant_key,
)
from controlnet.training.reader import Dataset, Reader, Sample, reader_of
from controlnet.training.store import DiskStore, MemoryStore, Over, Store
from controlnet.training.streaming import Streamed
from controlnet.training.survey import VERSION, survey_of

__all__ = ["Caching", "Dataset", "Encoded", "encode", "fingerprint", "held_out_count"]

CACHE = "cache"  # folder of a run, and of a data set that brings its own
BUILD = "build.json"  # in the folder of a build, whose pairs may lie in a folder within it
SHARD_BYTES = 128 * 2**20
SHARD_SECONDS = 60.0  # what a killed process may lose

T = TypeVar("T")


@dataclass(frozen=True)
class Caching:
    """Where encoded pictures and prompts are kept."""

    place: Literal["disk", "memory", "off"] = "disk"
    """"off" encodes every picture and prompt at each visit."""
    variants: int | None = None
    """How many versions of a random crop or flip there are, all of them cached; None draws one for each visit, which
    no cache can have."""


def encode(
    base: Base,
    dataset: Dataset,
    folder: Path,
    content: str,
    console: Console,
    caching: Caching = Caching(),
    seed: int = 0,
) -> Encoded:
    """The pairs as a training needs them, from the cache in `folder` as far as it has them.

    `content` is the data set's `fingerprint`; `seed` draws random crops and flips. Unusable pairs are left out and
    named; UserError when they are more than one in a hundred, or when nothing is left.
    """
    if isinstance(dataset, Pairs):
        dataset = _sized(dataset, base, console)
        if dataset.records.stream:
            return _streamed(base, dataset, folder, console, seed)
    reader = reader_of(dataset)
    is_random = isinstance(dataset, Pairs) and dataset.transform.is_random
    variants = caching.variants if is_random else 1
    ready = _own_cache(dataset, folder)
    survey = survey_of(reader, _multiple(base), folder, content, console, ready)
    texts = list(dict.fromkeys(["", *survey.captions]))
    longest = max(texts, key=lambda text: len(base.tokenizers[0](text).input_ids))
    places = _Places(folder if caching.place == "disk" else None, ready, console)
    moments = contexts = None
    context_keys: dict[str, str] = {}
    if caching.place != "off" and variants is not None:
        keys = [variant_key(variant) for variant in range(variants)]
        moments = _latents(base, reader, survey.samples, keys, places)
    if caching.place != "off":
        contexts, context_keys = _contexts(base, texts, longest, places)
    return Encoded(
        reader,
        **asdict(survey),
        latent_channels=base.vae.config.latent_channels,
        factor=base.factor,
        seed=seed,
        variants=variants,
        moments=moments,
        contexts=contexts,
        context_keys=context_keys,
        longest=longest,
        base=base,
    )


def fingerprint(dataset: Dataset) -> str:
    """SHA-256 of a data set's content: of the files of `Pairs`, of every item of another."""
    return reader_of(dataset).fingerprint()


def held_out_count(pairs: int) -> int:
    """The last 2 percent, from 16 up to 64, but never more than a quarter of the pairs."""
    return max(1, min(max(16, min(64, pairs // 50)), pairs // 4))


def _sized(pairs: Pairs, base: Base, console: Console) -> Pairs:
    """The pairs at a size that the base can take: as they are if they have one such size, else at the base's own."""
    multiple = _multiple(base)
    if pairs.transform.resolution is not None:
        return pairs.seen_by(replace(pairs.transform, multiple=multiple))
    sizes = set() if pairs.records.stream else {facts.size for facts in pairs.facts if facts.size}
    if len(sizes) == 1:
        width, height = next(iter(sizes))
        if width % multiple == 0 == height % multiple and width * height <= base.resolution**2:
            return pairs
    side = base.resolution
    console.print(f"pictures are resized and cropped to {side}x{side}; another size: --resolution")
    return pairs.seen_by(replace(pairs.transform, resolution=side, multiple=multiple))


def _streamed(base: Base, pairs: Pairs, folder: Path, console: Console, seed: int) -> Streamed:
    """Pairs of a stream, whose captions and pictures are seen when they come."""
    if pairs.transform.aspect_buckets:
        raise UserError("--aspect-buckets need every picture's size before the training; leave out --streaming")

    def hold_out(count: int) -> Encoded:
        kept, content = pairs.first(count), f"{fingerprint(pairs)} {count}"
        return encode(base, kept, folder, content, console, Caching("memory"), seed)

    return Streamed(
        reader_of(pairs),
        samples=range(len(pairs)),
        captions=(),
        hint_channels=3,
        defects=[],
        latent_channels=base.vae.config.latent_channels,
        factor=base.factor,
        seed=seed,
        variants=None,
        moments=None,
        contexts=None,
        context_keys={},
        longest="",
        base=base,
        hold_out=hold_out,
    )


def _multiple(base: Base) -> int:
    return base.factor * 2 ** (len(base.unet.config.block_out_channels) - 1)


def _own_cache(dataset: Dataset, folder: Path) -> Path | None:
    """The cache that a data set on disk brings, unless it is `folder` itself."""
    if not isinstance(dataset, Pairs):
        return None
    place = Path(dataset.place)
    home = place if place.is_dir() else place.parent
    beside = [home.parent] if (home.parent / BUILD).is_file() else []
    found = [each / CACHE for each in (home, *beside) if (each / CACHE).is_dir()]
    return found[0] if found and found[0].resolve() != folder.resolve() else None


@dataclass(frozen=True)
class _Places:
    """Where what is encoded is kept (None: in memory), and where it may be already."""

    own: Path | None
    ready: Path | None
    console: Console

    def store(self, kind: str, made_with: str) -> Store:
        """Of what was made with these weights."""
        name = f"{kind}-{hashlib.sha256(f'{VERSION} {made_with}'.encode()).hexdigest()[:16]}"
        own = MemoryStore() if self.own is None else self._open(self.own / name)
        return own if self.ready is None else Over(own, self._open(self.ready / name, is_ours=False))

    def _open(self, folder: Path, is_ours: bool = True) -> Store:
        store = DiskStore(folder, is_ours)
        for told in store.broken:
            self.console.print(f"{told}; what it held is made anew", style="yellow", markup=False)
        return store

    def tell(self, store: Store, keys: Iterable[str], what: str) -> None:
        """How many of these are in the cache that the data set brought."""
        if isinstance(store, Over):
            every = set(keys)
            lacking = len(store.ready.missing(every))
            others = "; the others are not, for this base, size and precision" if lacking else ""
            told = f"{self.ready}: {len(every) - lacking:,} of {len(every):,} {what} are encoded there{others}"
            self.console.print(told, markup=False)


def _latents(
    base: Base, reader: Reader, samples: Sequence[int], keys: Sequence[tuple[int, int]], places: _Places
) -> Store:
    """The store with the latents of all samples in all versions; those that it lacked are made."""
    config = base.vae.config
    of = f"{weights_hash([base.vae])} {config.scaling_factor} {config.shift_factor} {_precision(base)}"
    store = places.store("latents", of)
    named = {latent_key(reader, sample, key): (sample, key) for key in keys for sample in samples}
    places.tell(store, named, "pictures")
    tasks = [(key, *named[key]) for key in store.missing(named)]
    tasks.sort(key=lambda task: reader.size(task[1]))  # those of one size together; else in order

    def read(task: tuple[str, int, tuple[int, int]]) -> tuple[str, Sample]:
        key, sample, view_key = task
        return key, reader.read(sample, *view_key)

    def encoded(chunk: Sequence[tuple[str, Sample]]) -> dict[str, Tensor]:
        pictures_bhwc = torch.from_numpy(np.stack([sample.picture for _, sample in chunk]))
        mean_bchw, deviation_bchw = (part.to("cpu", _precision(base)) for part in encode_pictures(base, pictures_bhwc))
        return {"mean": mean_bchw, "deviation": deviation_bchw}

    found = track(
        prefetched(read, tasks, reader.threads),
        "encoding pictures",
        len(tasks),
        console=places.console,
        disable=not tasks,
    )
    chunks = _chunks(found, ENCODED_AT_ONCE, lambda item: item[1].picture.shape)
    _fill(store, (([key for key, _ in chunk], encoded(chunk)) for chunk in chunks))
    return store


def _contexts(base: Base, texts: Sequence[str], longest: str, places: _Places) -> tuple[Store, dict[str, str]]:
    """The store with the contexts of all distinct prompts and of the empty one, and where in it each is."""
    store = places.store("contexts", f"{weights_hash(base.text_encoders)} {base.dtype}")
    # the tokens and not the text: another tokenizer, or a longer prompt among the others, makes another context
    ids_nkt = [tokenize(tokenizer, [*texts, longest]).numpy() for tokenizer in base.tokenizers]
    keys = {
        text: hashlib.sha256(b"".join(each[number].tobytes() for each in ids_nkt)).hexdigest()[:32]
        for number, text in enumerate(texts)
    }
    places.tell(store, keys.values(), "prompts")
    absent = set(store.missing(keys.values()))
    lacking = [text for text, key in keys.items() if key in absent]

    def encoded(chunk: Sequence[str]) -> dict[str, Tensor]:
        prompt = encode_texts(base, chunk, longest)
        added = {name: x for name, x in (prompt.added or {}).items() if name != "time_ids"}  # each visit has its own
        return {name: x.to("cpu", base.dtype) for name, x in {"context": prompt.context_btd, **added}.items()}

    found = track(lacking, "encoding prompts", console=places.console, disable=not lacking)
    chunks = _chunks(found, ENCODED_AT_ONCE, lambda text: 0)
    _fill(store, (([keys[text] for text in chunk], encoded(chunk)) for chunk in chunks))
    return store, keys


def _precision(base: Base) -> torch.dtype:
    """Of stored latents: as exact as the base's own arithmetic."""
    return torch.float32 if base.dtype == torch.float32 else torch.float16


def _fill(store: Store, chunks: Iterator[tuple[list[str], dict[str, Tensor]]]) -> None:
    """Write shards of one shape, of some size, or of what came in some time."""
    keys, parts, since = list[str](), list[dict[str, Tensor]](), time.monotonic()

    def write() -> None:
        if keys:
            store.add(keys, {name: torch.cat([part[name] for part in parts]) for name in parts[0]})
            keys.clear()
            parts.clear()

    for names, tensors in chunks:
        if parts and any(tensors[name].shape[1:] != x.shape[1:] for name, x in parts[0].items()):
            write()
        keys += names
        parts.append(tensors)
        size = sum(x.nbytes for part in parts for x in part.values())
        if size >= SHARD_BYTES or time.monotonic() - since >= SHARD_SECONDS:
            write()
            since = time.monotonic()
    write()


def _chunks(items: Iterable[T], size: int, kind: Callable[[T], object]) -> Iterator[list[T]]:
    """Lists of `size` items of one kind, or of fewer where the kind changes."""
    chunk: list[T] = []
    for item in items:
        if chunk and (len(chunk) == size or kind(item) != kind(chunk[0])):
            yield chunk
            chunk = []
        chunk.append(item)
    if chunk:
        yield chunk
