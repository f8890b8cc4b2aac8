"""Pairs as the steps of a training take them: read in any thread or process, then encoded where the base is.

Shapes: b batch, c channels, h w latent size, H W picture size, t tokens, d token width.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from controlnet.annotators.inpaint import MARK, OPAQUE_FROM
from controlnet.base import Base
from controlnet.control import Prompt
from controlnet.data.order import Visits
from controlnet.data.transform import Size, View
from controlnet.images import three_channels
from controlnet.training.loss import Batch
from controlnet.training.reader import Reader, Sample
from controlnet.training.store import Store

Visit = tuple[int, int]  # row, epoch
Latent = tuple[Tensor, Tensor] | Tensor

HINT_BYTES = 2**29  # of decoded hints kept in memory, in each process that reads
ENCODED_AT_ONCE = 32  # pictures or prompts


@dataclass(frozen=True)
class Reading:
    """A batch as it was read: bytes, and what the cache has. Cheap to send from process to process."""

    hint_bhwc: Tensor  # uint8; RGBA where they mark what is to be painted
    latent: Latent  # mean and deviation (b, c, h, w); or pixels (b, H, W, 3) to encode
    prompt: "Prompt | Texts"
    has_marks: bool = False

    def __len__(self) -> int:
        return len(self.hint_bhwc)

    def __getitem__(self, part: slice) -> "Reading":
        latent = self.latent[part] if isinstance(self.latent, Tensor) else (self.latent[0][part], self.latent[1][part])
        return replace(self, hint_bhwc=self.hint_bhwc[part], latent=latent, prompt=self.prompt[part])

    def on(self, base: Base) -> Batch:
        """The batch on the base's device; what was not cached is encoded now."""
        device = base.device
        if isinstance(self.latent, Tensor):
            mean_bchw, deviation_bchw = encode_pictures(base, self.latent)
        else:
            mean_bchw, deviation_bchw = (part.to(device, torch.float32) for part in self.latent)
        prompt = self.prompt.encoded(base) if isinstance(self.prompt, Texts) else self.prompt
        hint_bchw = _to_hint(self.hint_bhwc.to(device, non_blocking=True), self.has_marks)
        return Batch(mean_bchw, deviation_bchw, prompt.to(device, base.dtype), hint_bchw)


@dataclass(frozen=True)
class Texts:
    """Prompts that are not encoded yet."""

    texts: tuple[str, ...]
    longest: str  # of the whole training: all contexts get as many tokens as its
    time_ids_b6: Tensor

    def __getitem__(self, part: slice) -> "Texts":
        return replace(self, texts=self.texts[part], time_ids_b6=self.time_ids_b6[part])

    def encoded(self, base: Base) -> Prompt:
        return with_time_ids(encode_texts(base, self.texts, self.longest), self.time_ids_b6)


@dataclass(frozen=True)
class Encoded:
    """n usable pairs: `samples[row]` is a row's index in the data set. What is not cached is encoded at each visit."""

    reader: Reader
    samples: Sequence[int]
    captions: Sequence[str]
    hint_channels: int
    defects: list[str]
    latent_channels: int
    factor: int
    """Pixels per cell of a latent."""
    seed: int
    variants: int | None
    """How many versions of a random crop or flip there are; None draws one for each visit."""
    moments: Store | None
    """Where latents are cached; None encodes them at each visit."""
    contexts: Store | None
    context_keys: dict[str, str]
    """By prompt."""
    longest: str
    base: Base | None
    """None in another process, which only reads."""
    _kept: "Shelf" = field(default_factory=lambda: Shelf())

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "base": None}

    def __len__(self) -> int:
        return len(self.samples)

    def read(self, rows: Sequence[int], empties_prompt_b: Tensor, epochs: Sequence[int] | None = None) -> Reading:
        """The pairs of these rows, all of one size, as seen in these epochs (default: the first), the emptied ones with
        the empty prompt. Reads, decodes and computes nothing else: for any thread or process."""
        visits = list(zip(rows, epochs or [0] * len(rows), strict=True))
        if self.moments is None:
            samples = self._samples(visits)
            latent: Latent = torch.from_numpy(np.stack([sample.picture for sample in samples]))
        else:
            samples = [self._sample_but_picture(*visit) for visit in visits]
            stored = self.moments.stack([self._latent_key(*visit) for visit in visits])
            latent = stored["mean"], stored["deviation"]
        emptied = zip(samples, empties_prompt_b.tolist(), strict=True)
        texts = ["" if is_empty else sample.caption for sample, is_empty in emptied]
        prompt = self._prompt(texts, torch.tensor([_time_ids(sample.view) for sample in samples]))
        hint_bhwc = torch.from_numpy(np.stack([sample.hint for sample in samples]))
        return Reading(hint_bhwc, latent, prompt, self.reader.has_marks)

    def batch(self, rows: Sequence[int], empties_prompt_b: Tensor, epochs: Sequence[int] | None = None) -> Batch:
        """The same, encoded, on the base's device."""
        assert self.base is not None, "only the process that opened the base encodes; others `read`"
        return self.read(rows, empties_prompt_b, epochs).on(self.base)

    @property
    def meaning(self) -> Mapping[str, Any]:
        """What the hints say of themselves, `condition` and `polarity` among it; empty if nothing."""
        return self.reader.meaning

    @property
    def needs_encoders(self) -> bool:
        """Whether pictures or prompts are encoded at each visit."""
        return self.moments is None or self.contexts is None

    def hint_of(self, row: int) -> NDArray[np.uint8]:
        """A row's hint as a picture, (H, W, channels) uint8; what is to be painted is white."""
        hint = self._hint(row, 0)
        return three_channels(hint) if self.reader.has_marks else hint

    def size_of(self, row: int) -> Size:
        """Width and height of what is seen of a row's picture: rows of one size may be in one batch."""
        return self.reader.size(self.samples[row])

    def latent_chw(self, row: int) -> tuple[int, int, int]:
        """Of its latent."""
        width, height = self.size_of(row)
        return self.latent_channels, height // self.factor, width // self.factor

    def bucket_of(self, row: int) -> int:
        """The same number for rows of one size, for `data.order.Visits`."""
        width, height = self.size_of(row)
        return width << 32 | height

    def visits(self, seed: int, size: int) -> Visits:
        """Which rows are visited when, in groups of `size`."""
        return Visits(seed, [self.bucket_of(row) for row in range(len(self))], size)

    def split(self, count: int) -> tuple["Encoded", "Encoded"]:
        """All but `count` rows, and these: the last ones of the size that most have."""
        buckets = np.array([self.bucket_of(row) for row in range(len(self))])
        sizes, counts = np.unique(buckets, return_counts=True)
        rows = np.flatnonzero(buckets == sizes[counts.argmax()])[-count:].tolist()
        held_out = set(rows)
        return self._rows([row for row in range(len(self)) if row not in held_out]), self._rows(rows)

    def _rows(self, rows: Sequence[int]) -> "Encoded":
        samples, captions = [self.samples[row] for row in rows], [self.captions[row] for row in rows]
        return replace(self, samples=samples, captions=captions, _kept=Shelf())

    def _key(self, epoch: int) -> tuple[int, int]:
        """What a random view is drawn by, beside its sample."""
        return (self.seed, epoch) if self.variants is None else variant_key(epoch % self.variants)

    def _latent_key(self, row: int, epoch: int) -> str:
        return latent_key(self.reader, self.samples[row], self._key(epoch))

    def _samples(self, visits: Sequence[Visit]) -> list[Sample]:
        return [self.reader.read(self.samples[row], *self._key(epoch)) for row, epoch in visits]

    def _sample_but_picture(self, row: int, epoch: int) -> Sample:
        view = self.reader.view(self.samples[row], *self._key(epoch))
        return Sample(None, self._hint(row, epoch), self.captions[row], view)

    def _hint(self, row: int, epoch: int) -> NDArray[np.uint8]:
        key = self.samples[row], *self._key(epoch)
        return self._kept.get(key) if key in self._kept else self._kept.keep(key, self.reader.hint(*key))

    def _prompt(self, texts: list[str], time_ids_b6: Tensor) -> Prompt | Texts:
        if self.contexts is None:
            return Texts(tuple(texts), self.longest or max(texts, key=len), time_ids_b6)
        stored = self.contexts.stack([self.context_keys[text] for text in texts])
        context_btd = stored.pop("context")
        return with_time_ids(Prompt(context_btd, stored or None), time_ids_b6)


def _time_ids(view: View) -> tuple[int, ...]:
    """Original size, top left corner of the crop, size: what SDXL is told (Podell et al. 2023, section 2.2)."""
    return *view.original[::-1], view.top, view.left, *view.size[::-1]


class Shelf:
    """Decoded hints, as many as there is room for. Empty again in another process."""

    def __init__(self) -> None:
        self._hints: dict[tuple[int, ...], NDArray[np.uint8]] = {}
        self._bytes = 0

    def __getstate__(self) -> dict[str, Any]:
        return {"_hints": {}, "_bytes": 0}

    def __contains__(self, key: tuple[int, ...]) -> bool:
        return key in self._hints

    def get(self, key: tuple[int, ...]) -> NDArray[np.uint8]:
        return self._hints[key]

    def keep(self, key: tuple[int, ...], hint: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The hint; kept while there is room."""
        if self._bytes + hint.nbytes <= HINT_BYTES:
            self._hints[key] = hint
            self._bytes += hint.nbytes
        return hint


def variant_key(variant: int) -> tuple[int, int]:
    """Of a fixed version of a random view: the same in every training, so that trainings share a cache."""
    return 0, variant


def latent_key(reader: Reader, sample: int, key: tuple[int, int]) -> str:
    """Of a sample's latent in the cache: the picture's content, and what is seen of it."""
    view = reader.view(sample, *key)
    return hashlib.sha256(reader.content(sample) + repr(view).encode()).hexdigest()[:32]


def encode_pictures(base: Base, picture_bhwc: Tensor) -> tuple[Tensor, Tensor]:
    """Pictures, uint8 or float in [-1, 1] -> mean and deviation (b, c, h, w) float32 on the base's device."""
    parts = []
    for some in torch.split(picture_bhwc, ENCODED_AT_ONCE):
        pixels_bchw = some.to(base.device, non_blocking=True).permute(0, 3, 1, 2)
        parts.append(base.encode_moments(pixels_bchw if some.is_floating_point() else pixels_bchw / 127.5 - 1))
    mean_bchw, deviation_bchw = (torch.cat(part) for part in zip(*parts, strict=True))
    return mean_bchw, deviation_bchw


def encode_texts(base: Base, texts: Sequence[str], longest: str) -> Prompt:
    """Prompts with as many tokens as `longest` needs: all prompts of a call get as many as its longest."""
    return base.encode_prompts([*texts, longest])[: len(texts)]


def with_time_ids(prompt: Prompt, time_ids_b6: Tensor) -> Prompt:
    """The prompt of SDXL with each picture's own size and crop; others have no such thing."""
    if not prompt.added:
        return prompt
    return Prompt(prompt.context_btd, {**prompt.added, "time_ids": time_ids_b6.to(prompt.context_btd.device)})


def _to_hint(hint_bhwc: Tensor, has_marks: bool) -> Tensor:
    """uint8 -> (b, c, H, W) float32 in [0, 1]; -1 where RGBA is transparent, as `annotators.inpaint` has it."""
    hint_bchw = hint_bhwc.permute(0, 3, 1, 2)
    if not has_marks:
        return hint_bchw.float() / 255
    return torch.where(hint_bchw[:, 3:] < OPAQUE_FROM, float(MARK), hint_bchw[:, :3].float() / 255)
